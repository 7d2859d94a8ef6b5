package sample

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Corpus is real text to make large amounts of data of that compress like a catalog's.
type Corpus struct {
	lines [][]byte
	words []string
	r     *rand.Rand
	zipf  *rand.Zipf
}

const (
	corpusBytes = 90 << 20
	corpusWords = 60000
)

// LoadCorpus reads sources and documentation below the folders.
func LoadCorpus(folders ...string) (*Corpus, error) {
	c := &Corpus{r: rand.New(rand.NewPCG(7, 11))}
	var total int
	for _, folder := range folders {
		// Folders and files that cannot be read are left out: any text will do.
		_ = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || total > corpusBytes {
				return nil
			}
			switch filepath.Ext(path) {
			case ".go", ".py", ".md", ".txt", ".html":
			default:
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil || len(b) > 1<<20 || bytes.IndexByte(b, 0) >= 0 {
				return nil
			}
			total += len(b)
			for _, l := range bytes.Split(b, []byte("\n")) {
				if l = bytes.TrimSpace(l); len(l) > 20 && len(l) < 300 {
					c.lines = append(c.lines, copyText(bytes.ToValidUTF8(l, []byte("?"))))
				}
			}
			return nil
		})
	}
	if total < 4<<20 {
		return nil, fmt.Errorf("there are only %d bytes of text below %s", total, strings.Join(folders, ", "))
	}
	c.collectWords()
	c.zipf = rand.NewZipf(c.r, 1.1, 20, uint64(len(c.words)-1))
	return c, nil
}

// copyText makes a line fit for COPY's text format and for JSON strings.
func copyText(l []byte) []byte {
	out := make([]byte, 0, len(l))
	for _, ch := range l {
		switch {
		case ch < ' ':
			ch = ' '
		case ch == '\\':
			ch = '/'
		case ch == '"':
			ch = '\''
		}
		out = append(out, ch)
	}
	return out
}

func (c *Corpus) collectWords() {
	seen := map[string]bool{}
	for i := 0; i < len(c.lines) && len(c.words) < corpusWords; i += 3 {
		for _, w := range bytes.FieldsFunc(c.lines[i], func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }) {
			word := strings.ToLower(string(w))
			if len(word) >= 3 && len(word) < 18 && !seen[word] {
				seen[word] = true
				c.words = append(c.words, word)
			}
		}
	}
}

func (c *Corpus) word() string  { return c.words[c.zipf.Uint64()] }
func (c *Corpus) ident() string { return c.word() + "_" + c.word() }
func (c *Corpus) line() []byte  { return c.lines[c.r.IntN(len(c.lines))] }

// bulkTable is one table of the bulk data: what it looks like, its share of the bytes and
// how to write a row for COPY.
type bulkTable struct {
	name, columns string
	share         float64
	indexes       []string
	row           func(c *Corpus, w *bytes.Buffer, i int, ts string)
}

var bulkTables = []bulkTable{
	{"query_log", "id bigint, h text, ts timestamp, user_id int, rows bigint, dur int, status text, sql text", 0.35,
		[]string{"(id)", "(ts)", "(user_id, status)"}, func(c *Corpus, w *bytes.Buffer, i int, ts string) {
			fmt.Fprintf(w, "%d\t%016x%016x\t%s\t%d\t%d\t%d\t%s\tSELECT %s", i, c.r.Uint64(), c.r.Uint64(), ts, c.r.IntN(4000), c.r.IntN(1e6), c.r.IntN(1e7),
				[]string{"OK", "OK", "OK", "ERROR", "CANCELLED"}[c.r.IntN(5)], c.ident())
			for range 2 + c.r.IntN(12) {
				fmt.Fprintf(w, ", %c.%s", 'a'+byte(c.r.IntN(2)), c.ident())
			}
			fmt.Fprintf(w, " FROM %s.%s a JOIN %s.%s b ON a.%s_id = b.id WHERE a.%s >= '%s' AND b.%s IN (%d, %d, %d) LIMIT %d\n",
				c.word(), c.ident(), c.word(), c.ident(), c.word(), c.word(), ts[:10], c.word(), c.r.IntN(1e6), c.r.IntN(1e6), c.r.IntN(1e6), 10*c.r.IntN(100))
		}},
	{"attr", "id bigint, table_id int, name text, type text, comment text, nullable bool, ts timestamp, score numeric", 0.2,
		[]string{"(id)", "(table_id)", "(name)"}, func(c *Corpus, w *bytes.Buffer, i int, ts string) {
			types := []string{"varchar(255)", "integer", "bigint", "timestamp", "numeric(18,4)", "boolean", "text", "date"}
			fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%t\t%s\t%.4f\n", i, i/23, c.ident(), types[c.r.IntN(len(types))], c.line(), c.r.IntN(3) == 0, ts, c.r.Float64()*100)
		}},
	{"audit", "id bigint, ts timestamp, body jsonb", 0.2,
		[]string{"(id)", "(ts)", "using gin ((body -> 'otype'), (body -> 'actor'))"}, func(c *Corpus, w *bytes.Buffer, i int, ts string) {
			fmt.Fprintf(w, "%d\t%s\t", i, ts)
			c.auditEvent(w)
			w.WriteByte('\n')
		}},
	{"article", "id bigint, ts timestamp, title text, body text", 0.25,
		[]string{"(id)", "(title)"}, func(c *Corpus, w *bytes.Buffer, i int, ts string) {
			fmt.Fprintf(w, "%d\t%s\t%s %s %s\t", i, ts, c.word(), c.word(), c.word())
			for range 20 + c.r.IntN(150) {
				w.WriteString("<p>")
				w.Write(c.line())
				w.WriteString("</p>")
			}
			w.WriteByte('\n')
		}},
}

func (c *Corpus) auditEvent(w *bytes.Buffer) {
	fmt.Fprintf(w, `{"event": "%s.%s", "actor": {"id": %d, "email": "%s.%s@example.com"}, "otype": "%s", "oid": %d, "request_id": "%016x%016x", "ip": "10.%d.%d.%d", "note": "%s"}`,
		c.word(), []string{"create", "update", "view", "delete"}[c.r.IntN(4)], c.r.IntN(4000), c.word(), c.word(),
		[]string{"table", "column", "article", "query"}[c.r.IntN(4)], c.r.IntN(1e7), c.r.Uint64(), c.r.Uint64(), c.r.IntN(256), c.r.IntN(256), c.r.IntN(256), c.line())
}

// Event makes one JSON event of lineage, of n bytes.
func (c *Corpus) Event(n int) []byte {
	var b bytes.Buffer
	side := func(name string) {
		fmt.Fprintf(&b, `, "%s": {"data_source_id": %d, "schema_name": "%s", "table_name": "%s", "object_type": "column", "object_id": %d}`, name, c.r.IntN(40), c.word(), c.ident(), c.r.IntN(1e7))
	}
	fmt.Fprintf(&b, `{"event_type": "lineage.%s", "event_version": 3, "actor": {"user_id": %d, "email": "user%d@example.com"}, "request_id": "%016x"`,
		[]string{"create", "update", "delete"}[c.r.IntN(3)], c.r.IntN(4000), c.r.IntN(4000), c.r.Uint64())
	for b.Len() < n-300 {
		side("upstream_column")
		side("downstream_column")
	}
	b.WriteString(`, "dataflow_content": "`)
	for b.Len() < n-2 {
		b.WriteString(c.ident() + ", ")
	}
	b.Truncate(n - 2)
	b.WriteString(`"}`)
	return b.Bytes()
}

// Bulk fills the database postgres of a server with some `size` bytes of tables and
// indexes; said is called with what is being done.
func (c *Corpus) Bulk(ctx context.Context, dsn string, size int64, said func(string)) error {
	db, err := Connect(ctx, dsn, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = db.Close(context.WithoutCancel(ctx)) }()
	if _, err := db.Exec(ctx, "set maintenance_work_mem = '256MB'"); err != nil {
		return err
	}
	for _, t := range bulkTables {
		said("table " + t.name)
		// Of the bytes some quarter goes to the indexes.
		want := int64(float64(size) * t.share * 0.77)
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(c.writeRows(t, pw, want)) }()
		// A table made in the same transaction is filled without WAL at wal_level=minimal.
		tx, err := db.Begin(ctx)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "create table "+t.name+" ("+t.columns+")")
		if err == nil {
			_, err = db.PgConn().CopyFrom(ctx, pr, "copy "+t.name+" from stdin")
		}
		_ = pr.CloseWithError(errors.New("the table is full"))
		if err == nil {
			err = tx.Commit(ctx)
		}
		if err != nil {
			return fmt.Errorf("fill table %s: %w", t.name, err)
		}
		for _, x := range t.indexes {
			if x[0] == '(' {
				x = "using btree " + x
			}
			if _, err := db.Exec(ctx, "create index on "+t.name+" "+x); err != nil {
				return fmt.Errorf("index table %s: %w", t.name, err)
			}
		}
	}
	for _, s := range []string{"vacuum (analyze, freeze)", "checkpoint"} {
		if _, err := db.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// writeRows writes rows of want bytes of text; a table of them takes about as many.
func (c *Corpus) writeRows(t bulkTable, w io.Writer, want int64) error {
	start := time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)
	var b bytes.Buffer
	for i := 0; want > 0; i++ {
		t.row(c, &b, i, start.Add(time.Duration(i)*7*time.Second).Format("2006-01-02 15:04:05.000000"))
		if b.Len() > 1<<20 {
			want -= int64(b.Len())
			if _, err := w.Write(b.Bytes()); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return nil
}

// BulkTree makes some `size` bytes of application files: a third logs, a third many small
// ones, a third compressed already.
func (c *Corpus) BulkTree(root string, size int64) error {
	t := &tree{root: root, r: c.r}
	var b bytes.Buffer
	fill := func(n int64) []byte {
		b.Reset()
		for int64(b.Len()) < n {
			c.auditEvent(&b)
			b.WriteByte('\n')
		}
		return b.Bytes()[:n]
	}
	const large = 16 << 20
	for i, left := 0, size/3; left > 0 && t.err == nil; i, left = i+1, left-large {
		t.file(fmt.Sprintf("logs/query-%03d.log", i), fill(min(left, large)), 0o644)
		t.file(fmt.Sprintf("media/upload-%03d.zip", i), t.noise(int(min(left, large))), 0o644)
	}
	for i, left := 0, size/3; left > 0 && t.err == nil; i++ {
		n := int64(200 + c.r.IntN(40000))
		t.file(fmt.Sprintf("objects/%02x/%02x/%d.json", i%251, i%13, i), fill(n), 0o644)
		left -= n
	}
	return t.err
}
