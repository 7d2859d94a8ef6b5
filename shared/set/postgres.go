package set

// Postgres is what the set holds of the database, and the facts that a restore
// and a verification need.
type Postgres struct {
	Tool   Tool   `json:"tool"`   // pgbackrest
	Stanza string `json:"stanza"` // pgBackRest's name of the cluster
	Label  string `json:"label"`  // pgBackRest's name of the backup

	SystemIdentifier string `json:"system_identifier"` // decimal, as pg_controldata prints it
	ServerVersion    string `json:"server_version"`    // 15.18
	ServerVersionNum int    `json:"server_version_num"`
	DataDirectory    string `json:"data_directory"`
	DataChecksums    bool   `json:"data_checksums"`

	StartLSN       string `json:"start_lsn"` // X/X
	StopLSN        string `json:"stop_lsn"`
	Timeline       uint32 `json:"timeline"`
	StartWAL       string `json:"start_wal"` // 24 hexadecimal digits
	StopWAL        string `json:"stop_wal"`
	WALSegmentSize int64  `json:"wal_segment_size"` // bytes
	// WAL lists the stored segments StartWAL…StopWAL in order.
	WAL []WALFile `json:"wal"`
	// WALResourceManagers are the ids, from 128, of extensions' resource managers whose
	// records are in that WAL: a restored server needs their libraries to replay them.
	WALResourceManagers []int  `json:"wal_resource_managers,omitempty"`
	CompressType        string `json:"compress_type"` // zst, lz4, gz or none

	Size     int64 `json:"size"`      // bytes of the cluster
	RepoSize int64 `json:"repo_size"` // bytes in the repository

	Databases   []Database   `json:"databases"`
	Tablespaces []Tablespace `json:"tablespaces"`
	Config      []ConfigFile `json:"config"` // configuration files outside the data directory
	PageErrors  []PageError  `json:"page_errors"`

	// Limits of the server that a standby or a restored server must not go below
	// (pg_control records them): max_connections, max_worker_processes, max_wal_senders,
	// max_prepared_transactions, max_locks_per_transaction.
	Limits map[string]int `json:"limits"`

	// What follows came later; a set that lacks it does not say.

	// Superuser is a role that may log in and do all: the one that initdb made, where
	// that still may.
	Superuser string `json:"superuser,omitempty"`
	// Preload is what the server loaded by itself: the values in force of
	// shared_preload_libraries and session_preload_libraries, by these names.
	Preload map[string]string `json:"preload,omitempty"`
	// ConfigInForce are the files that the server read, by the settings config_file,
	// hba_file and ident_file: relative to the data directory where they lie in it,
	// else absolute. Others of the usual names may lie there, and mean nothing.
	ConfigInForce map[string]string `json:"config_in_force,omitempty"`
	// TrackCommitTimestamp says that the server kept the times of commits; a server
	// that starts once without it forgets them all.
	TrackCommitTimestamp bool `json:"track_commit_timestamp,omitempty"`
	// Subscriptions of logical replication, of all databases.
	Subscriptions []Subscription `json:"subscriptions,omitempty"`
	// Collations are the versions of the libraries that sort text.
	Collations []Collation `json:"collations,omitempty"`
	// Needs is what the databases use of the host that they run on.
	Needs *Needs `json:"needs,omitempty"`
}

// Needs is what the databases use of the host that they run on, which no backup holds:
// a server that lacks it starts, and fails where it is used.
type Needs struct {
	// Locales of the operating system that collations in use name: de_DE.UTF-8.
	Locales    []Need `json:"locales,omitempty"`
	Extensions []Need `json:"extensions,omitempty"`
	// Libraries of functions, types and index methods in C, as the database names
	// them: $libdir/pg_trgm.
	Libraries []Need `json:"libraries,omitempty"`
	// Dictionaries of text search, made by people, that read files of the installation.
	Dictionaries []Need `json:"dictionaries,omitempty"`
	// Unseen is the number of databases that could not be looked into.
	Unseen int `json:"unseen,omitempty"`
}

// Need is one thing that databases use.
type Need struct {
	Name      string   `json:"name"`
	Version   string   `json:"version,omitempty"`   // of an extension
	Extension string   `json:"extension,omitempty"` // that a library belongs to
	Databases []string `json:"databases"`           // the first ten
	More      int      `json:"more,omitempty"`      // databases besides those
}

// Subscription is one that the cluster held.
type Subscription struct {
	Database string `json:"database"`
	Name     string `json:"name"`
}

// Collation is the version of a library that sorts text. An index on text that was
// made with another version may be wrong.
type Collation struct {
	Provider string `json:"provider"` // libc: the C library; icu: the library ICU itself
	// Version of the C library as glibc says it (2.36), or the major version of ICU's
	// libraries, as in libicui18n.so.72 (72).
	Version string `json:"version"`
}

// WALFile is one WAL segment as it is stored.
type WALFile struct {
	Name   string `json:"name"`   // 24 hexadecimal digits
	Path   string `json:"path"`   // in the repository
	Size   int64  `json:"size"`   // bytes as stored
	SHA256 string `json:"sha256"` // of the stored bytes
}

// Database is one database of the cluster.
type Database struct {
	OID      uint32 `json:"oid"`
	Name     string `json:"name"`
	Encoding string `json:"encoding"`
	Size     int64  `json:"size"`
	// Locale of the database; absent in older sets.
	Provider string `json:"locale_provider,omitempty"` // c (libc), i (ICU), b (builtin)
	Collate  string `json:"collate,omitempty"`         // as the operating system names it
	Ctype    string `json:"ctype,omitempty"`
	// Closed says that the database lets no session in (ALLOW_CONNECTIONS false).
	Closed bool `json:"closed,omitempty"`
}

// Tablespace is a tablespace outside the data directory.
type Tablespace struct {
	OID      uint32 `json:"oid"`
	Name     string `json:"name"`
	Location string `json:"location"`
}

// ConfigFile is a file of configuration that lies outside the data directory.
// Its archive entry is PostgresConfig + Path without the leading slash.
type ConfigFile struct {
	Path string `json:"path"` // absolute
	// Kind is config_file, hba_file, ident_file, include, or start: how Debian's
	// pg_ctlcluster starts the server.
	Kind   string `json:"kind"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// PageError names pages whose checksum was wrong.
type PageError struct {
	File     string `json:"file"`     // path in the data directory
	Relation string `json:"relation"` // database.schema.relation where it could be found out
	Blocks   string `json:"blocks"`   // e.g. 3, 7-9
}
