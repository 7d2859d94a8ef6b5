package set

import "time"

// Files is what the set holds of the application's files.
type Files struct {
	Paths   []string `json:"paths"`   // absolute, as configured
	Exclude []string `json:"exclude"` // patterns
	// Places says where each of Paths led when the run began: what is stored is stored
	// there. Sets of before this was recorded have none.
	Places []Place `json:"places,omitempty"`
	Count  int64   `json:"count"` // entries
	Bytes  int64   `json:"bytes"` // of file contents
	// Holes is how many of Bytes are holes of sparse files, which take no room. 0: none, or
	// a set of before this was recorded.
	Holes   int64  `json:"holes,omitempty"`
	Entries []File `json:"entries"`
}

// Place is what a configured path led to when the run began.
type Place struct {
	Configured string `json:"configured"`
	Resolved   string `json:"resolved"` // absolute; no symbolic link is on the way
	// ResolvedBytes is to Resolved what File.PathBytes is to File.Path.
	ResolvedBytes string      `json:"resolved_bytes,omitempty"`
	Way           []PlaceStep `json:"way,omitempty"` // in the order in which it was gone
}

// PlaceStep is a symbolic link on the way from the configured path to the place, or a
// directory that a ".." on it leads out of. Both are stored, the link with this target,
// so that the configured path leads to the place after a restore too.
type PlaceStep struct {
	Path        string `json:"path"` // absolute; no link is on the way
	PathBytes   string `json:"path_bytes,omitempty"`
	Target      string `json:"target,omitempty"` // empty: a directory
	TargetBytes string `json:"target_bytes,omitempty"`
}

// File is one stored file, directory or link. Its archive entry is FilesPrefix +
// Path without the leading slash.
type File struct {
	Path string `json:"path"` // absolute
	// PathBytes is the path in base64 where it is not valid UTF-8 (Path then shows it
	// with replacement characters); empty otherwise.
	PathBytes string    `json:"path_bytes,omitempty"`
	Kind      string    `json:"kind"` // file, dir, symlink, hardlink, fifo is never stored
	Size      int64     `json:"size"`
	ModTime   time.Time `json:"mtime"`
	Mode      string    `json:"mode"` // octal, with setuid, setgid and sticky bits
	UID       int       `json:"uid"`
	GID       int       `json:"gid"`
	Target    string    `json:"target,omitempty"` // of a symlink, or the first path of a hard link
	// TargetBytes is to Target what PathBytes is to Path.
	TargetBytes string `json:"target_bytes,omitempty"`
	SHA256      string `json:"sha256,omitempty"` // of a regular file's content as stored
	// SHA256Of is "extents" for a sparse file with over 1 GiB of holes: its SHA256 is of the
	// sparse map as in the archive, without padding, and the data. Empty: of the whole content.
	SHA256Of string `json:"sha256_of,omitempty"`
	Holes    int64  `json:"holes,omitempty"` // bytes of Size that are holes
	// Changed says what happened while the file was read, empty if nothing did:
	// changed, shrunk, grown, vanished, unreadable. A file without SHA256 is then not in
	// the archive at all.
	Changed string `json:"changed,omitempty"`
	// Parent marks a directory that only leads to a configured path: of what is in it,
	// nothing but the way there is stored.
	Parent bool `json:"parent,omitempty"`
}
