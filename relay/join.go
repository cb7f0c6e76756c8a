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
	"sync"
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
	reasonList    telemetry.Reason = "it is not on the relay's list"
	reasonLost    telemetry.Reason = "its connection ended"
)

// join lets a node in that says who it is within limit, or returns nil.
func (r *Relay) join(ctx context.Context, t *tls.Conn, limit time.Duration) *node {
	id, err := identity.PeerID(t.ConnectionState())
	if err != nil {
		panic("internal error: " + err.Error()) // VerifyConnection has seen it
	}
	ctx, cancel := context.WithCancel(ctx)
	n := &node{relay: r, id: id, cancel: cancel}
	late := time.AfterFunc(limit, cancel)
	defer late.Stop()
	if reason := n.join(ctx, t); reason != "" {
		n.log("node refused", reason)
		n.explain(ctx, reason)
		n.close()
		return nil
	}
	r.log.LogAttrs(ctx, slog.LevelDebug, "node joins", slog.String("node", string(id)),
		slog.Int("models", len(n.entry.models)), slog.Int("capacity", n.conn.Capacity()))
	return n
}

// serve runs the connection of a node that has joined to its end.
func (n *node) serve(ctx context.Context) {
	reason := n.follow()
	n.leave(ctx, reason)
	n.log("node leaves", reason)
	n.explain(ctx, reason)
	n.close()
	n.relay.directory.gone(n.id, n.conn)
}

func (n *node) log(message string, reason telemetry.Reason) {
	n.relay.log.LogAttrs(context.Background(), slog.LevelDebug, message, slog.String("node", string(n.id)), slog.Any("reason", reason))
}

// nodeRefusals are the reasons that a node is told.
var nodeRefusals = map[telemetry.Reason]tunnel.Refusal{
	reasonStatus:  tunnel.RefusedMalformed,
	reasonBundle:  tunnel.RefusedExpired,
	reasonFull:    tunnel.RefusedFull,
	reasonExpired: tunnel.RefusedExpired,
	reasonList:    tunnel.RefusedNotAllowed,
}

// explain tells a node why it is not taken, for its operator.
func (n *node) explain(ctx context.Context, reason telemetry.Reason) {
	if why, ok := nodeRefusals[reason]; ok && n.conn != nil {
		n.conn.Refuse(ctx, why)
	}
}

func (n *node) close() {
	n.cancel()
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
	status io.Closer
	lines  *bufio.Reader // of the status
	entry  *entry
}

// join opens the tunnel and puts the node into the directory when its first
// line is a bundle of its own. An empty reason is success. Its status ends with
// ctx.
func (n *node) join(ctx context.Context, t *tls.Conn) telemetry.Reason {
	conn, err := tunnel.Open(ctx, t, tunnel.Config{})
	if err != nil {
		return reasonTunnel
	}
	n.conn = conn
	if n.relay.allowed != nil && !n.relay.allowed[n.id] {
		return reasonList
	}
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
	n.status = res.Body
	n.lines = bufio.NewReaderSize(res.Body, 512) // it waits most of its life
	line, err := n.read()
	if err != nil {
		return reasonStatus
	}
	return n.take(line)
}

// take does what a line says.
func (n *node) take(line []byte) telemetry.Reason {
	s, err := parseStatus(line)
	if err != nil || s.Bundle == nil && n.entry == nil {
		return reasonStatus
	}
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
		expiry := time.AfterFunc(time.Until(n.entry.notAfter)+expiryGrace, n.cancel)
		select {
		case <-wait.C:
		case <-n.conn.Done(): // then reading fails at once
		}
		line, err := n.read()
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
		// Beside this goroutine, which there is one of for each idle node: what
		// stack the parsing takes is not kept until the next line.
		var reason telemetry.Reason
		var taken sync.WaitGroup
		taken.Go(func() { reason = n.take(line) })
		if taken.Wait(); reason != "" {
			return reason
		}
	}
}

// leave takes the node out of the directory, if this connection put it there.
// One that drains may keep the connection for as long as exchanges run on it.
func (n *node) leave(ctx context.Context, reason telemetry.Reason) {
	n.relay.directory.leave(n.id, n.conn)
	n.relay.hub.Detach(string(n.id), n.conn)
	if reason != reasonDrains {
		return
	}
	n.status.Close()
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	n.conn.Finish(ctx)
}

var errLine = errors.New("malformed status line")

// read reads a line.
func (n *node) read() (line []byte, err error) {
	for {
		part, err := n.lines.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("%w: longer than %d bytes", errLine, maxLine)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case err == io.EOF && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
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
