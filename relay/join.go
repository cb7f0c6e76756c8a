package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"token.place/identity"
	"token.place/internal/telemetry"
	"token.place/tunnel"
)

const (
	// maxLine bounds a status line; the largest bundle there can be fits.
	maxLine = 64 << 10

	// lineInterval is the least time between two lines that are read. A node
	// that says more waits: it is its own status that gets late.
	lineInterval = 100 * time.Millisecond

	// leaveTime is how long a node that has left the directory may keep its
	// connection for exchanges that are running.
	leaveTime = 10 * time.Minute

	// expiryGrace is how long a node may stay without a descriptor in force.
	expiryGrace = 5 * time.Minute
)

// status is a line of a node's GET /status: at least one field is set.
type status struct {
	Bundle   *identity.Bundle `json:"bundle"`
	Load     *load            `json:"load"`
	Draining bool             `json:"draining"`
}

// Why a node's tunnel ended or was refused, for the log.
const (
	reasonTunnel  telemetry.Reason = "its tunnel did not open"
	reasonStatus  telemetry.Reason = "its status is malformed or late"
	reasonBundle  telemetry.Reason = "its descriptor is not its own or not valid now: check its clock"
	reasonFull    telemetry.Reason = "the relay has as many nodes as it takes"
	reasonDrains  telemetry.Reason = "it drains"
	reasonExpired telemetry.Reason = "its descriptor expired and it sent no other"
	reasonLost    telemetry.Reason = "its connection ended"
)

// serveNode runs a node's connection to its end. It calls proved when the node
// is in the directory or refused, within limit.
func (r *Relay) serveNode(ctx context.Context, t *tls.Conn, limit time.Duration, proved func()) {
	id, err := identity.PeerID(t.ConnectionState())
	if err != nil {
		panic("internal error: " + err.Error()) // VerifyConnection has seen it
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := node{relay: r, id: id, cancel: cancel}
	late := time.AfterFunc(limit, cancel)
	reason := n.join(ctx, t)
	late.Stop()
	proved()
	if reason != "" {
		r.log.LogAttrs(ctx, slog.LevelDebug, "node refused", slog.String("node", string(id)), slog.Any("reason", reason))
	} else {
		r.log.LogAttrs(ctx, slog.LevelDebug, "node joins", slog.String("node", string(id)),
			slog.Int("models", len(n.entry.descriptor.Models)), slog.Int("capacity", n.conn.Capacity()))
		reason = n.follow()
		n.leave(ctx, reason)
		r.log.LogAttrs(ctx, slog.LevelDebug, "node leaves", slog.String("node", string(id)), slog.Any("reason", reason))
	}
	if n.conn != nil {
		n.conn.Close()
	}
}

// node is a node's connection. One goroutine owns it.
type node struct {
	relay  *Relay
	id     identity.ID
	cancel context.CancelFunc // ends its status
	conn   *tunnel.Conn
	lines  *bufio.Reader
	entry  *entry
}

// join opens the tunnel and puts the node into the directory when its first
// line is a bundle of its own. An empty reason is success. conn, when set, is
// the caller's to close; the status ends with ctx.
func (n *node) join(ctx context.Context, t *tls.Conn) telemetry.Reason {
	conn, err := tunnel.Open(ctx, t, tunnel.Config{})
	if err != nil {
		return reasonTunnel
	}
	n.conn = conn
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(n.id)+"/status", nil)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	req.Header["User-Agent"] = []string{""}
	res, err := conn.RoundTrip(req)
	if err != nil {
		return reasonTunnel
	}
	if res.StatusCode != http.StatusOK {
		return reasonStatus
	}
	n.lines = bufio.NewReaderSize(res.Body, 512) // it waits most of its life
	s, err := n.read()
	if err != nil || s.Bundle == nil {
		return reasonStatus
	}
	return n.take(s)
}

// take does what a line says.
func (n *node) take(s status) telemetry.Reason {
	if s.Bundle != nil {
		id, d, err := s.Bundle.Open(time.Now())
		if err != nil || id != n.id {
			return reasonBundle
		}
		e, err := newEntry(id, d, *s.Bundle, n.conn)
		if err != nil {
			return reasonBundle
		}
		if n.entry != nil {
			e.load.Store(n.entry.load.Load())
		}
		n.entry = e
	}
	if s.Load != nil {
		n.entry.load.Store(s.Load)
	}
	switch {
	case s.Draining:
		return reasonDrains
	case s.Bundle == nil:
		return ""
	}
	n.relay.hub.Attach(string(n.id), n.conn)
	switch err := n.relay.directory.put(n.entry); err {
	case nil:
		return ""
	case errReplaced:
		return reasonDrains
	default:
		n.relay.hub.Detach(string(n.id), n.conn)
		return reasonFull
	}
}

// follow reads lines until the node leaves. An expired descriptor is out of the
// directory by itself; its node has expiryGrace to send another.
func (n *node) follow() telemetry.Reason {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		expiry := time.AfterFunc(time.Until(n.entry.descriptor.NotAfter)+expiryGrace, n.cancel)
		select {
		case <-wait.C:
		case <-n.conn.Done(): // then reading fails at once
		}
		s, err := n.read()
		expired := !expiry.Stop()
		wait.Reset(lineInterval)
		switch {
		case expired:
			return reasonExpired
		case err == io.EOF:
			return reasonDrains // it said so, or its GOAWAY does
		case errors.Is(err, errLine):
			return reasonStatus
		case err != nil:
			return reasonLost
		}
		if reason := n.take(s); reason != "" {
			return reason
		}
	}
}

// leave takes the node out of the directory, if this connection put it there.
// One that drains may keep the connection for the exchanges that run.
func (n *node) leave(ctx context.Context, reason telemetry.Reason) {
	n.relay.directory.remove(n.id, n.conn)
	n.relay.hub.Detach(string(n.id), n.conn)
	if reason != reasonDrains {
		return
	}
	wait := time.NewTimer(leaveTime)
	defer wait.Stop()
	select {
	case <-n.conn.Done():
	case <-wait.C:
	case <-ctx.Done():
	}
}

var errLine = errors.New("malformed status line")

// read reads a line.
func (n *node) read() (s status, err error) {
	var line []byte
	for {
		part, err := n.lines.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return s, fmt.Errorf("%w: longer than %d bytes", errLine, maxLine)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull {
			if err == io.EOF && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return s, err
		}
	}
	return parseStatus(line)
}

// parseStatus reads a line strictly: one object, known fields, sane numbers.
func parseStatus(line []byte) (s status, err error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return status{}, fmt.Errorf("%w: not the JSON of one", errLine)
	}
	if _, err := dec.Token(); err != io.EOF {
		return status{}, fmt.Errorf("%w: bytes after the JSON", errLine)
	}
	if s == (status{}) {
		return status{}, fmt.Errorf("%w: it says nothing", errLine)
	}
	if l := s.Load; l != nil && (l.InFlight < 0 || l.InFlight > maxLoad || l.Capacity < 0 || l.Capacity > maxLoad) {
		return status{}, fmt.Errorf("%w: load out of range", errLine)
	}
	return s, nil
}

// maxLoad bounds what a node may say of its load.
const maxLoad = 1_000_000
