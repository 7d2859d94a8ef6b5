package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// chromium starts Debian's Chromium without a window; it ends with the test. It
// stands in a directory of its own, which is removed as well as it goes: its helpers
// may still write for a moment.
func chromium(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	require.NoError(t, err, "the browser tests need Chromium: .ci/install test")
	dir, err := os.MkdirTemp("", "cb-chromium-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(filepath.Join(dir, "profile")),
		chromedp.DisableGPU, chromedp.WSURLReadTimeout(2*time.Minute), chromedp.Env("HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.Flag("font-render-hinting", "none"))
	// Chromium's sandbox refuses root, and needs rights that containers often have not. It sees only our own pages.
	options = append(options, chromedp.NoSandbox)
	allocator, end := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(end)
	browser, _ := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		gone, done := context.WithTimeout(browser, 30*time.Second)
		defer done()
		_ = chromedp.Cancel(gone)
	})
	require.NoError(t, chromedp.Do(browser), "start %s", path)
	return browser
}

// tab is a page in a browser context of its own: no cookie, no remembered log-in.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	messages []string // errors and warnings of the console: of scripts, of the policy, of the network
}

func newTab(t *testing.T, browser context.Context) *tab {
	t.Helper()
	c, end := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	limited, done := context.WithTimeout(c, 5*time.Minute)
	t.Cleanup(done)
	b := &tab{t: t, ctx: limited}
	require.NoError(t, chromedp.Listen(limited, func(e any) {
		switch e := e.(type) {
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
				b.heard(fmt.Sprintf("%s: %s (%s)", e.Entry.Source, e.Entry.Text, e.Entry.URL))
			}
		case *runtime.EventExceptionThrown:
			text, _ := json.Marshal(e.ExceptionDetails)
			b.heard("exception: " + string(text))
		case *runtime.EventConsoleAPICalled:
			if e.Type == "error" || e.Type == "warning" || e.Type == "assert" {
				text, _ := json.Marshal(e.Args)
				b.heard("console: " + string(text))
			}
		}
	}))
	_, err := chromedp.Call(limited, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	b.size(1280, 900)
	return b
}

func (b *tab) heard(text string) { b.mu.Lock(); b.messages = append(b.messages, text); b.mu.Unlock() }

// quiet demands that the console had nothing to complain of.
func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.messages)
}

// forget drops complaints that were meant to come.
func (b *tab) forget() { b.mu.Lock(); b.messages = nil; b.mu.Unlock() }

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Do(b.ctx, steps...))
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 500})
	require.NoError(b.t, err)
}

func (b *tab) scheme(name string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
	require.NoError(b.t, err)
}

// visit opens a page of the site with the log-in that a person types.
func (b *tab) visit(s *site, path string) {
	b.t.Helper()
	u, err := url.Parse(s.base + path)
	require.NoError(b.t, err)
	u.User = url.UserPassword("admin", secret)
	b.do(chromedp.Navigate(u.String()))
}

// eval gives the value of a script, for which it waits; into is a pointer, or nil.
func (b *tab) eval(script string, into any) {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[[]byte](script, chromedp.EvalAwaitPromise))
	require.NoError(b.t, err)
	if into != nil {
		require.NoError(b.t, json.Unmarshal(value, into))
	}
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	var s string
	b.eval(fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector), &s)
	return strings.Join(strings.Fields(s), " ")
}

// until waits for a condition in the page, which may change meanwhile.
func (b *tab) until(condition string) {
	b.t.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		var ok bool
		if ok, last = chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean("+condition+")")); last == nil && ok {
			return
		}
		select {
		case <-b.ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	page, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
	require.FailNow(b.t, "the page never came to it", "%s\nlast error: %v\nconsole: %q\npage:\n%s", condition, last, b.messages, page)
}

// shows waits for a text on the page.
func (b *tab) shows(text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.body && document.body.innerText.replace(/\\s+/g,' ').includes(%q)", text))
}

// click presses what the selector finds, which must be there.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.querySelector(%q)", selector))
	b.do(chromedp.Click(chromedp.CSS(selector)))
}

// picture writes a screenshot where DASHBOARD_SCREENSHOTS names a directory.
func (b *tab) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("DASHBOARD_SCREENSHOTS")
	if dir == "" {
		return
	}
	shot, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	require.NoError(b.t, err)
	pixels, err := png.Decode(bytes.NewReader(shot))
	require.NoError(b.t, err)
	var small bytes.Buffer // Chromium is in a hurry and packs badly
	require.NoError(b.t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, pixels))
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, "dashboard-"+name+".png"), small.Bytes(), 0o644))
}
