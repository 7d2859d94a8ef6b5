package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"catalog-backup/shared/lab"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/stage"
)

const (
	events      = 500_000
	eventBytes  = 1200
	partitions  = 4
	distinct    = 20_000 // made once, sent again and again with another number
	fillLimit   = 5 * time.Minute
	silentLimit = 30 * time.Second
)

func command(name string, args ...string) *exec.Cmd { return exec.Command(name, args...) }

func timed(f func()) float64 {
	at := time.Now()
	f()
	return time.Since(at).Seconds()
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// eventBus measures the dump of a topic on Apache Kafka, as the worker's stage does it,
// against an ordinary consumer that writes record by record into a file. Each is a
// process of its own.
func (b *bench) eventBus(ctx context.Context) (err error) {
	kafka, err := lab.StartKafka(lab.KafkaOptions{Dir: filepath.Join(b.work, "kafka"), JVM: []string{"-Xmx1g", "-XX:TieredStopAtLevel=4"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close()) }()
	text, err := b.text.get()
	if err != nil {
		return err
	}
	say("making %d events", distinct)
	made := make([][]byte, distinct)
	for i := range made {
		made[i] = text.Event(eventBytes)
	}
	for _, codec := range []struct {
		name  string
		codec kgo.CompressionCodec
	}{{"zstd", kgo.ZstdCompression()}, {"uncompressed", kgo.NoCompression()}} {
		topic := "bench-" + codec.name
		say("publishing %d events, %s", events, codec.name)
		if err := publish(ctx, kafka, topic, codec.codec, made); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		ours := b.busReader("ours: raw batches into the archive, hashed", "dump", kafka, topic)
		theirs := b.busReader("record by record into a file", "consume", kafka, topic)
		if err := alternate(ctx, b.rounds, []*contender{ours, theirs}); err != nil {
			return err
		}
		b.report.section(fmt.Sprintf("Event Bus: %d JSON events of %d bytes, %d partitions, %s at the source", events, eventBytes, partitions, codec.name), ours, theirs)
		if codec.name == "zstd" {
			ratio := theirs.median(seconds) / ours.median(seconds)
			b.report.bar("bus, zstd source: at least 4 times as fast as record by record", ratio >= 4, "%.1f times", ratio)
		}
	}
	return nil
}

// busReader runs this program again as dump or consume.
func (b *bench) busReader(title, how string, kafka *lab.Broker, topic string) *contender {
	out := filepath.Join(b.work, how+".out")
	return &contender{name: title, prepare: func() error { return remove(out) }, run: func(ctx context.Context) (sample, error) {
		self, err := os.Executable()
		if err != nil {
			return sample{}, err
		}
		var s sample
		before := treeCPU(kafka.PID())
		cmd := command(self, how, strings.Join(kafka.Brokers, ","), topic, out)
		done, peak := make(chan struct{}), make(<-chan int64)
		s.cpu, err = executeWatched(ctx, cmd, func(pid int) { peak = watchMemory(pid, done) })
		close(done)
		if err != nil {
			return s, err
		}
		s.cpu += treeCPU(kafka.PID()) - before
		if how == "dump" {
			s.memory = <-peak
		}
		s.bytes, err = treeSize(out)
		return s, err
	}}
}

func publish(ctx context.Context, kafka *lab.Broker, topic string, codec kgo.CompressionCodec, made [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, fillLimit)
	defer cancel()
	c, err := kafka.Client(kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerLinger(20*time.Millisecond), kgo.MaxBufferedRecords(20000), kgo.UnknownTopicRetries(-1))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := kadm.NewClient(c).CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		return err
	}
	failed := make(chan error, 1)
	for i := range events {
		// The number is in a header: the value is shared.
		r := &kgo.Record{Value: made[i%len(made)], Headers: []kgo.RecordHeader{{Key: "n", Value: []byte(strconv.Itoa(i))}}}
		c.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// readBus is the program's other face: read a topic into a file, and check that all of
// it is there.
func readBus(ctx context.Context, how, brokers, topic, out string) error {
	read := dump
	if how == "consume" {
		read = consume
	}
	n, err := read(ctx, strings.Split(brokers, ","), topic, out)
	if err == nil && n != events {
		err = fmt.Errorf("%s read %d records of %d", how, n, events)
	}
	return err
}

// sink writes segments into the archive, as the worker's stage does.
type sink struct{ w *archive.Writer }

func (s sink) Segment(ctx context.Context, entry string, content []byte, packed bool) error {
	class := archive.Text
	if packed {
		class = archive.Packed
	}
	h := &archive.Header{Name: entry, Kind: archive.Regular, Size: int64(len(content)), Mode: 0o600, ModTime: time.Now()}
	return s.w.Entry(ctx, h, bytes.NewReader(content), class)
}

func dump(ctx context.Context, brokers []string, topic, out string) (int64, error) {
	o := eventbus.Options{Brokers: brokers, ClientID: "bench", Include: []string{topic}}
	positions, _, err := eventbus.ReadPositions(ctx, o)
	if err != nil {
		return 0, err
	}
	w, err := archive.Create(out, archive.Options{})
	if err != nil {
		return 0, err
	}
	defer w.Abort()
	bus, _, err := eventbus.Dump(ctx, o, positions, sink{w}, stage.NoProgress{})
	if err != nil {
		return 0, err
	}
	if _, err := w.Finish(); err != nil {
		return 0, err
	}
	var n int64
	for _, t := range bus.Topics {
		for _, p := range t.Partitions {
			n += p.Records
		}
	}
	return n, nil
}

func consume(ctx context.Context, brokers []string, topic, out string) (int64, error) {
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxBytes(64<<20), kgo.FetchMaxPartitionBytes(16<<20))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	f, err := os.Create(out)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	var n int64
	for heard := time.Now(); n < events; {
		wait, cancel := context.WithTimeout(ctx, time.Second)
		fetches := c.PollFetches(wait)
		cancel()
		fetches.EachRecord(func(r *kgo.Record) {
			writeRecord(w, r)
			n++
			heard = time.Now()
		})
		if ctx.Err() != nil || time.Since(heard) > silentLimit {
			return n, errors.Join(ctx.Err(), fmt.Errorf("the broker gave nothing for %s", silentLimit))
		}
	}
	return n, errors.Join(w.Flush(), f.Close())
}

// writeRecord writes a record as lengths and bytes. The writer keeps the first error for
// its Flush.
func writeRecord(w io.Writer, r *kgo.Record) {
	var head [24]byte
	binary.BigEndian.PutUint64(head[0:], uint64(r.Offset))
	binary.BigEndian.PutUint64(head[8:], uint64(r.Timestamp.UnixMilli()))
	binary.BigEndian.PutUint32(head[16:], uint32(len(r.Key)))
	binary.BigEndian.PutUint32(head[20:], uint32(len(r.Value)))
	_, _ = w.Write(head[:])
	_, _ = w.Write(r.Key)
	_, _ = w.Write(r.Value)
	for _, h := range r.Headers {
		_, _ = fmt.Fprintf(w, "%d %s %d ", len(h.Key), h.Key, len(h.Value))
		_, _ = w.Write(h.Value)
	}
}
