package backup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"catalog-backup/shared/set"
	"catalog-backup/worker/archive"
	"catalog-backup/worker/eventbus"
	"catalog-backup/worker/pipeline"
)

// bus streams the Event Bus into its archive, which it hands on unfinished.
type bus struct{ Options }

type busResult struct {
	handed
	Part    *set.EventBus  `json:"part"`    // nil: there is no bus
	Archive *archive.Begun `json:"archive"` // continued by the archive stage
}

func (s bus) Name() string { return eventBusStage }

func (s bus) Run(ctx context.Context, a *pipeline.Attempt) (any, error) {
	if len(s.Config.EventBus.Brokers) == 0 {
		return busResult{}, nil
	}
	in, err := s.Dir.ReadIntent(a.Run.ID)
	if err != nil {
		return nil, err
	}
	var before prepared
	if err := a.Result(prepareStage, &before); err != nil {
		return nil, err
	}
	if err := a.Holds(ctx, false); err != nil {
		return nil, err
	}
	if err := s.Dir.RemoveParts(a.Run.ID, a.Hold, in.Set.EventBusName()); err != nil {
		return nil, err
	}
	path := filepath.Join(s.Dir.Dump, set.PartName(in.Set.EventBusName(), a.Run.ID, a.Hold.String()))
	w, err := archive.Create(path, s.archiveOptions())
	if err != nil {
		return nil, err
	}
	part, f, err := eventbus.Dump(ctx, s.eventBusOptions(), before.Positions, sink{w, s.Now}, a.Progress)
	if err != nil {
		w.Abort()
		return nil, errors.Join(err, os.Remove(path))
	}
	begun, err := w.Hold()
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return busResult{handed: handed{f}, Part: part, Archive: &begun}, nil
}

// sink writes segments as entries of the archive.
type sink struct {
	w   *archive.Writer
	now func() time.Time
}

func (s sink) Segment(ctx context.Context, entry string, content []byte, packed bool) error {
	class := archive.Text
	if packed {
		class = archive.Packed
	}
	h := &archive.Header{Name: entry, Kind: archive.Regular, Size: int64(len(content)), Mode: 0o600, ModTime: s.now().UTC().Truncate(time.Second)}
	return s.w.Entry(ctx, h, bytes.NewReader(content), class)
}
