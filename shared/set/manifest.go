package set

import "time"

// FormatName and FormatVersion stand at the head of every manifest. A reader
// refuses a version it does not know.
const (
	FormatName    = "catalog-backup/set"
	FormatVersion = 1
)

// Manifest is the truth about one backup set. It is written last, by rename,
// and never changed. The copy inside an archive has no size and no SHA-256 in
// Archives, since an archive cannot hold its own hash.
type Manifest struct {
	Format  string `json:"format"`
	Version int    `json:"version"`

	Set            string  `json:"set"`
	Run            string  `json:"run"`
	Instance       string  `json:"instance"`
	Node           string  `json:"node"`
	Type           Type    `json:"type"`
	Parent         *string `json:"parent"`
	CatalogVersion string  `json:"catalog_version"`
	Program        Tool    `json:"program"`

	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`

	Archives []Archive `json:"archives"`
	// Instructions lie beside the archives, and in the main archive as ScriptEntry and
	// TextEntry. Sets of earlier versions have none.
	Instructions []Instruction `json:"instructions,omitempty"`

	Postgres *Postgres `json:"postgres"`
	EventBus *EventBus `json:"eventbus"`

	NotCovered []string `json:"not_covered"`
	Warnings   []string `json:"warnings"`
	Notes      []string `json:"notes"`

	// Files comes last, since its list may be long and is streamed.
	Files *Files `json:"files"`
}

// Type says whether a set stands alone.
type Type string

const (
	Full        Type = "full"
	Incremental Type = "incremental"
)

// Tool names a program and its version.
type Tool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Archive kinds.
const (
	MainArchive     = "main"
	EventBusArchive = "eventbus"
)

// Archive is one .tar.gz of the set, looked up beside the manifest.
type Archive struct {
	Kind   string `json:"kind"` // MainArchive or EventBusArchive
	Name   string `json:"name"` // base name
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"` // hex, of the .tar.gz file
}

// Instruction is a file that tells somebody who has nothing but the set's files how to
// restore it. The one beside the archives and the one in the main archive are the same.
type Instruction struct {
	Name   string `json:"name"`  // base name
	Entry  string `json:"entry"` // of the main archive: ScriptEntry or TextEntry
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// Paths inside the archives. Everything is under one of these.
const (
	PostgresRepo   = "postgres/pgbackrest/" // a pgBackRest repository (repo1-path)
	PostgresConfig = "postgres/config/"     // configuration outside the data directory, by absolute path
	FilesPrefix    = "files/"               // application files, by absolute path
	EventBusPrefix = "eventbus/topics/"     // <topic>/<partition>/<20-digit base offset>.log
	ManifestCopy   = "catalog-backup/set.json"
	TextEntry      = "catalog-backup/restore.txt"
	ScriptEntry    = "catalog-backup/restore.sh"
)

// Damage is one thing that a verification found wrong.
type Damage struct {
	Part    string `json:"part,omitempty"` // postgres, files or eventbus; "" = the set as a whole
	Entry   string `json:"entry"`          // archive entry, file or partition it is about
	Problem string `json:"problem"`        // what is wrong, for people
	// Restorable says that every byte is as it was backed up, and that what is wrong
	// lies in what was backed up. The set is not good; a restore warns and goes on.
	Restorable bool `json:"restorable,omitempty"`
}
