// Package tunnel lets a relay send HTTP requests down a connection that the
// node dialled, so that a node behind a home router needs no open port.
//
// The protocol is HTTP/2 the other way round: who dialled serves. The node
// calls [Serve] on a connection and answers requests with an http.Handler; the
// relay calls [Open] on the connection it accepted and has an
// http.RoundTripper; a [Hub] chooses among many of them by node id. TLS, and
// with it who the other end is, is the caller's. See spec/tunnel.md.
package tunnel

import (
	"errors"
	"net/http"
	"time"
)

// Proto is the protocol's name in ALPN (RFC 7301) and, with its digit, its
// version.
const Proto = "tokenplace-tunnel/1"

var (
	// ErrUnavailable is returned at once for an exchange that no node can take
	// now: none of that id is connected, or it is full, draining or dead.
	// Nothing was sent.
	ErrUnavailable = errors.New("node unavailable")

	// ErrDrained is returned by Serve when the relay asked for the drain: it is
	// going away or restarting, and the node may dial again, there or elsewhere.
	ErrDrained = errors.New("drained by the relay")

	// ErrReplaced is returned by Serve when the relay drained this connection in
	// favour of a newer one of the same node. Dialling again at once would only
	// take turns with whatever opened that one.
	ErrReplaced = errors.New("replaced by a newer connection of this node")
)

// Both ends keep streams beside the exchanges so that a full node can still be
// asked to drain: one for the status, one for the drain.
const reservedStreams = 2

// maxExchanges bounds the streams a relay opens on one connection whatever the
// node allows, so that all of them can stall and the connection's window is
// still open: otherwise slow clients could stop a node.
const maxExchanges = 1000

const _ = uint(relayWindow - maxExchanges*streamWindow) // does not compile if they could

const (
	streamWindow = 1 << 20   // bytes in flight per stream: 50 ms of round trip at 20 MB/s
	relayWindow  = 1 << 30   // bytes in flight to a relay: what net/http's client announces, not settable
	nodeWindow   = 4<<20 - 1 // bytes in flight to a node: the most net/http lets a server announce
	frameSize    = 16 << 10  // small, so that a small answer passes a big one on a slow uplink

	// Kernel keep-alives find a vanished host in 4 s (see tune) and cost no
	// wake-up. These pings are for what a kernel cannot see: a frozen process,
	// a proxy in between. The relay asks first, its acknowledgement resets the
	// node's clock, so one ping a period crosses the connection and not two.
	relayPing   = 15 * time.Second
	nodePing    = 20 * time.Second
	pingTimeout = 5 * time.Second
)

// protocols is HTTP/2 with prior knowledge: what ALPN agreed on is ours to say.
func protocols() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

// settings is what both ends agree on; zero ping times mean the defaults.
func settings(ping, timeout, ping0 time.Duration) *http.HTTP2Config {
	if ping == 0 {
		ping = ping0
	}
	if timeout == 0 {
		timeout = pingTimeout
	}
	return &http.HTTP2Config{
		MaxReadFrameSize:          frameSize,
		MaxReceiveBufferPerStream: streamWindow,
		SendPingTimeout:           ping,
		PingTimeout:               timeout,
	}
}
