// Package telemetry is the only door through which facts leave a process.
//
// A reviewer's question of a private network is "what do you write down?", and
// the answer is the table of attributes below. Everything else that reaches a
// [Logger] is dropped before it is formatted, whatever it is called and however
// deep it is nested. Messages are constants of the code; data goes in
// attributes.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Environment decides how much is logged. TOKENPLACE_ENV names it.
type Environment string

const (
	// Production logs what an operator did and should act on: starting, draining,
	// trouble and its end. No fact about any connection of a client.
	Production Environment = "production"
	// Development adds what relays, nodes and tunnels do. Still no content, no
	// address of a client, no key.
	Development Environment = "development"
)

// ParseEnvironment reads TOKENPLACE_ENV; empty is Production, so that forgetting
// it is safe.
func ParseEnvironment(s string) (Environment, error) {
	switch e := Environment(s); e {
	case "":
		return Production, nil
	case Production, Development:
		return e, nil
	default:
		return "", fmt.Errorf("TOKENPLACE_ENV is %q: set it to %q or %q", s, Production, Development)
	}
}

// allowed are the attributes that may leave, and the least talkative
// environment in which each does. All are facts about the operator's own
// machine and network, none about a client or an exchange.
var allowed = map[string]Environment{
	"listen":   Production,  // the address this process listens on
	"id":       Production,  // this relay's or node's own ID
	"engine":   Production,  // kind of engine: "Ollama", "pocket"
	"models":   Production,  // how many
	"capacity": Production,  // exchanges at one time
	"reason":   Production,  // a Reason, see there
	"node":     Development, // another's ID: who is connected to whom is connection metadata
	"relay":    Development,
	"wait":     Development, // until the next attempt
	"stack":    Development, // of our own code, after a panic: functions and lines
}

// Reason is a constant that says why something happened. Its own type keeps an
// error, which may quote a peer, from being passed in its place.
type Reason string

// New returns a logger that writes text lines to w.
func New(env Environment, w io.Writer) *slog.Logger { return newLogger(env, w, slog.LevelInfo) }

// Warnings is New for a command that itself says what it does: in production
// only trouble is logged.
func Warnings(env Environment, w io.Writer) *slog.Logger { return newLogger(env, w, slog.LevelWarn) }

func newLogger(env Environment, w io.Writer, production slog.Level) *slog.Logger {
	level := production
	if env == Development {
		level = slog.LevelDebug
	}
	return slog.New(&handler{env: env, level: level, out: &output{w: w}})
}

// Discard is a logger for those who were given none.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// handler writes "time LEVEL message key=value …" with allowed attributes only.
type handler struct {
	env    Environment
	level  slog.Level
	attrs  []slog.Attr // from With
	nested bool        // inside a group, where no attribute has a name in the table
	out    *output
}

type output struct {
	mu sync.Mutex // guards w, so that lines stay whole
	w  io.Writer
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *handler) WithGroup(string) slog.Handler {
	next := *h
	next.nested = true
	return &next
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	if !h.nested {
		next.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	}
	return &next
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := fmt.Appendf(nil, "%s %-5s %s", r.Time.UTC().Format(time.RFC3339), r.Level, r.Message)
	for _, a := range h.attrs {
		line = h.append(line, a)
	}
	r.Attrs(func(a slog.Attr) bool {
		if !h.nested {
			line = h.append(line, a)
		}
		return true
	})
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(append(line, '\n'))
	return err
}

// append adds a if the table lets it out of this environment. Only plain
// values pass: an error or a struct could carry anything.
func (h *handler) append(line []byte, a slog.Attr) []byte {
	least, ok := allowed[a.Key]
	if !ok || least == Development && h.env != Development {
		return line
	}
	switch v := a.Value.Any().(type) {
	case Reason:
		return fmt.Appendf(line, " %s=%q", a.Key, string(v))
	case string:
		if a.Key == "reason" {
			return line
		}
		return fmt.Appendf(line, " %s=%q", a.Key, v)
	case int64, uint64, time.Duration:
		return fmt.Appendf(line, " %s=%v", a.Key, v)
	}
	return line
}
