package dashboard

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// guard lets in who may see the dashboard.
type guard struct {
	open              bool
	user, pass, token [sha256.Size]byte
	hasPass, hasToken bool
	hosts             map[string]bool
	log               *logrus.Logger
	now               func() time.Time
	wait              func(context.Context, time.Duration)
	mu                sync.Mutex
	waiting           int
	failures          map[string]failure // by address of the client
}

// failure counts the failed log-ins of one address.
type failure struct {
	count int
	last  time.Time
}

const (
	// maxWaiting bounds the failed log-ins that are being slowed down at once.
	maxWaiting = 32
	// forgetAfter is when an address's failures are forgotten.
	forgetAfter = 10 * time.Minute
	maxPenalty  = 4 * time.Second
	// maxAddresses bounds the memory of failures.
	maxAddresses = 4096
)

func newGuard(o Options) *guard {
	g := &guard{open: o.Open, user: digest(o.Username), pass: digest(o.Password), token: digest(o.Token), hasPass: o.Password != "", hasToken: o.Token != "",
		hosts: map[string]bool{}, log: o.Log, now: o.Now, failures: map[string]failure{}, wait: waitFor}
	for _, h := range o.Hosts {
		g.hosts[strings.ToLower(strings.Trim(h, "[]"))] = true
	}
	return g
}

func digest(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

func waitFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

type userKey struct{}

// userOf is who logged in.
func userOf(r *http.Request) string {
	u, _ := r.Context().Value(userKey{}).(string)
	return u
}

// who tells whose credentials the request carries. tried is false when it carries none.
// Digests are compared in constant time, so that neither length nor a common beginning shows.
func (g *guard) who(r *http.Request) (user string, ok, tried bool) {
	if g.open {
		return "anybody on this machine", true, true
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", false, false
	}
	if name, pass, isBasic := r.BasicAuth(); isBasic {
		n, p := digest(name), digest(pass)
		good := subtle.ConstantTimeCompare(n[:], g.user[:]) & subtle.ConstantTimeCompare(p[:], g.pass[:])
		return name, g.hasPass && good == 1, true
	}
	if scheme, token, _ := strings.Cut(header, " "); strings.EqualFold(scheme, "Bearer") {
		t := digest(strings.TrimSpace(token))
		return "the bearer token", g.hasToken && subtle.ConstantTimeCompare(t[:], g.token[:]) == 1, true
	}
	return "", false, true
}

// loggedIn lets only those through who are logged in.
func (g *guard) loggedIn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, ok, tried := g.who(r)
		if ok {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, user)))
			return
		}
		if tried && !g.slowDown(r) {
			tooMany(w)
			return
		}
		if g.hasPass {
			w.Header().Add("WWW-Authenticate", `Basic realm="catalog-backup", charset="UTF-8"`)
		}
		if g.hasToken {
			w.Header().Add("WWW-Authenticate", `Bearer realm="catalog-backup"`)
		}
		http.Error(w, "log in with dashboard.username and dashboard.password, or with dashboard.token as a bearer token", http.StatusUnauthorized)
	})
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "5")
	http.Error(w, "too many failed log-ins at once; try again in a few seconds", http.StatusTooManyRequests)
}

// slowDown logs a failed log-in and makes its sender wait, the longer the more there
// were from its address. Who has the right password never waits. false: too many wait
// already.
func (g *guard) slowDown(r *http.Request) bool {
	from := clientHost(r)
	now := g.now()
	g.mu.Lock()
	f := g.failures[from]
	if now.Sub(f.last) > forgetAfter {
		f = failure{}
	}
	f.count, f.last = f.count+1, now
	if len(g.failures) >= maxAddresses {
		clear(g.failures)
	}
	g.failures[from] = f
	if g.waiting >= maxWaiting {
		g.mu.Unlock()
		return false
	}
	g.waiting++
	g.mu.Unlock()
	defer func() { g.mu.Lock(); g.waiting--; g.mu.Unlock() }()
	// The name is not logged: people type their password there.
	g.log.WithFields(logrus.Fields{"remote": from, "failures": f.count}).Warn("dashboard: a log-in failed")
	g.wait(r.Context(), penalty(f.count))
	return true
}

// penalty doubles from a quarter of a second up to maxPenalty.
func penalty(count int) time.Duration {
	return min(maxPenalty, 250*time.Millisecond<<min(count-1, 10))
}

func clientHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// host refuses requests that name a host which is not ours: a page of another name
// that a name server points at us (DNS rebinding). With configured names these count,
// besides the address itself on loopback; without, only connections to loopback are checked.
func (g *guard) host(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if !g.expects(r.Host, local) {
			http.Error(w, "this host name is not one of the dashboard's; add it to dashboard.hosts", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *guard) expects(host string, local net.Addr) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if g.hosts[host] {
		return true
	}
	onLoopback := false
	if tcp, ok := local.(*net.TCPAddr); ok {
		onLoopback = tcp.IP.IsLoopback()
	}
	if !onLoopback {
		return len(g.hosts) == 0
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// discreet answers anybody with the status, and says why only to those who are logged
// in: the reasons name hosts and paths. Who tries to log in here is slowed down as
// everywhere.
func (g *guard) discreet(health http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, ok, tried := g.who(r)
		if ok {
			health.ServeHTTP(w, r)
			return
		}
		if tried && !g.slowDown(r) {
			tooMany(w)
			return
		}
		answer := &recorder{header: http.Header{}, status: http.StatusOK}
		health.ServeHTTP(answer, r)
		text := "ok   dashboard\n"
		if answer.status >= http.StatusBadRequest {
			text = "BAD  dashboard: log in to see why\n"
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(answer.status)
		_, _ = w.Write([]byte(text))
	})
}
