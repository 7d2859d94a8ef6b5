// Package archive writes and reads the .tar.gz files of a set, and walks the
// application's files into them.
//
// An archive is a tar (POSIX pax) in a sequence of gzip members. Content that is
// compressed already lies in members of stored blocks, the rest in members
// compressed in parallel at a fast level. gzip, GNU tar, bsdtar and Go read the
// sequence as one stream. A member boundary may lie anywhere, also inside an
// entry, so a stage can write the first members of a file and another one can
// append the rest (Hold, Resume).
//
// Writing is one pass: tar blocks → gzip members and the file → SHA-256, each in
// a goroutine of its own, with early write-back and one fsync at the end.
package archive
