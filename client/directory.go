package client

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"token.place/identity"
	"token.place/ohttp"
)

const (
	// maxDirectory and maxNodes bound what one relay may list: 64 MiB is over
	// three KiB for each of the nodes, and a bundle takes about that.
	maxDirectory = 64 << 20
	maxNodes     = 20_000
	maxEntry     = 256 << 10 // in bytes, with what is read ahead
	// maxAsked is how many nodes a relay can be asked for by id at once.
	maxAsked = 100

	// fresh is how long a directory is used without a thought, and stale how long
	// it is used while the next one is on its way. Past that a request waits.
	fresh = 3 * time.Second
	stale = time.Minute
	// retryRelay is how long after a failed fetch the next one may begin.
	retryRelay = time.Second
	// fetchTime bounds a fetch, for relays that drip.
	fetchTime = 30 * time.Second
	dialTime  = 10 * time.Second
)

// relay is one way to reach nodes. Transport.mu guards all but Relay and http.
type relay struct {
	identity.Relay
	http *http.Transport

	fetching bool
	begun    uint64    // Transport.failures when the last finished fetch began, whatever came of it
	done     time.Time // when it ended
	err      *Error    // what came of it
	fetched  time.Time // when the last fetch that worked ended
	offers   []offer   // of that fetch
	refused  []Node
	verdicts map[[32]byte]*verdict

	avoid time.Time // until then others go first
}

// node is a verified node with the key to seal to. It does not change.
type node struct {
	id        identity.ID
	key       *ohttp.PublicKey
	models    []identity.Model
	capacity  int
	notBefore time.Time
	notAfter  time.Time
}

// verdict is what came of looking at a bundle: a node, or why not.
type verdict struct {
	node   *node
	reason string
}

// offer is a node in a relay's directory.
type offer struct {
	node     *node
	inFlight int // the relay's word
	capacity int
}

// newRelay makes the relay's HTTP client. Engines are slow, so there is no
// limit on the time to an answer: pings, and TCP's own for HTTP/1.1, find a
// relay that is gone.
func newRelay(r identity.Relay, dial func(context.Context, string, string) (net.Conn, error)) *relay {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	h := &http.Transport{
		TLSClientConfig:        r.TLS("h2", "http/1.1"),
		TLSHandshakeTimeout:    dialTime,
		Protocols:              protocols,
		DisableCompression:     true,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: 64 << 10,
		// Not strict about streams: a relay that allows no more of them on one
		// connection gets another connection.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second, WriteByteTimeout: 15 * time.Second},
	}
	if dial == nil {
		h.Proxy = http.ProxyFromEnvironment
		dial = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}).DialContext
	}
	h.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		return dial(ctx, network, addr)
	}
	return &relay{Relay: r, http: h}
}

// networkError is an error of the connection to a relay, not of what came
// through it.
type networkError struct{ error }

func (e *networkError) Unwrap() error { return e.error }

// RoundTrip performs a request on the connections to the relay.
func (r *relay) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.http.RoundTrip(req)
	if err != nil {
		return nil, &networkError{err}
	}
	return resp, nil
}

// name is how errors call the relay.
func (r *relay) name() string { return "relay " + r.URL.Host }

// refresh begins a fetch of every directory that is due: it is not fresh, or
// it is from before the failure since. It reports whether one is on its way that
// is worth waiting for: not that of a relay which fails while others answer. t.mu
// is held.
func (t *Transport) refresh(now time.Time, since uint64) (pending bool) {
	for _, r := range t.relays {
		if !r.fetching && r.due(now, since) && t.ctx.Err() == nil {
			r.fetching = true
			begun := t.failures
			t.work.Go(func() { t.fetch(r, begun) })
		}
		pending = pending || r.fetching && (r.err == nil || !t.answering())
	}
	return pending
}

func (r *relay) due(now time.Time, since uint64) bool {
	limit := fresh
	if r.err != nil {
		limit = retryRelay
	}
	age := now.Sub(r.done)
	return r.begun < since || age >= limit || age < 0
}

// usable reports whether nodes may be chosen from the directory: while it is not
// too old, and while nothing newer can be had. Descriptors have ends of their own.
func (r *relay) usable(now time.Time) bool {
	return !r.fetched.IsZero() && (now.Sub(r.fetched) < stale || r.err != nil)
}

// fetch gets the relay's directory and makes it the one in use.
func (t *Transport) fetch(r *relay, begun uint64) {
	ctx, cancel := context.WithTimeout(t.ctx, fetchTime)
	defer cancel()
	d, err := t.download(ctx, r)

	t.mu.Lock()
	defer t.mu.Unlock()
	// Without the monotonic clock, which sleeps when a laptop does.
	r.fetching, r.begun, r.done, r.err = false, begun, time.Now().Round(0), err
	if err == nil {
		r.fetched = r.done
		r.offers, r.refused, r.verdicts = d.offers, d.refused, d.verdicts
		t.merge()
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// directory is a relay's answer, looked through.
type directory struct {
	offers   []offer
	refused  []Node
	verdicts map[[32]byte]*verdict
}

// download asks for the pinned nodes by their ids, so that what else the relay
// lists, which anybody can add to, is of no account; for the whole directory only
// if nothing is pinned.
func (t *Transport) download(ctx context.Context, r *relay) (*directory, *Error) {
	d := &directory{verdicts: map[[32]byte]*verdict{}}
	if len(t.pinned) == 0 {
		err := t.ask(ctx, r, d, nil)
		if errors.As(err, new(*limitError)) {
			// What came is enough to look for a node.
			d.refused = append(d.refused, Node{Relay: r.URL.String(), Refused: fmt.Sprintf(reasonCut, err)})
			err = nil
		}
		return d, r.failed(err)
	}
	for ids := range slices.Chunk(t.asked, maxAsked) {
		if err := t.ask(ctx, r, d, ids); err != nil {
			return nil, r.failed(err)
		}
	}
	return d, nil
}

// ask adds to d what the relay lists of these nodes, or of all. The error is an
// *Error, or one of the connection or of readDirectory.
func (t *Transport) ask(ctx context.Context, r *relay, d *directory, ids []string) error {
	u := *r.URL
	u.Path, u.RawQuery = "/v1/nodes", url.Values{"id": ids}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return failf(http.StatusBadGateway, "relay_unreachable", "the URL of %s is malformed", r.name())
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "") // what runs here is nobody's business
	resp, err := r.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != http.StatusOK || media != "application/json" {
		return r.notServed(resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	return readDirectory(resp.Body, func(e entry, err error) { t.admit(r, d, e, err) })
}

// failed makes an *Error of what ask returned.
func (r *relay) failed(err error) *Error {
	var ours *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return ours
	case errors.As(err, new(*networkError)):
		return r.unreachable(err)
	}
	return failf(http.StatusBadGateway, "relay_error", "%s did not answer with a directory of nodes: %v. Check that the URL is a token.place relay's", r.name(), err)
}

// entry is one node in GET /v1/nodes (spec/relay.md). Only the bundle is worth
// anything; the rest is the relay's word.
type entry struct {
	ID     identity.ID     `json:"id"`
	Bundle identity.Bundle `json:"bundle"`
	Load   struct {
		InFlight int `json:"in_flight"`
		Capacity int `json:"capacity"`
	} `json:"load"`
}

var errEntry = errors.New("an entry has the wrong types")

// limitError says that a directory is larger than what is read of one. What came
// before is good.
type limitError struct{ text string }

func (e *limitError) Error() string { return e.text }

// readDirectory reads {"nodes":[…]} and calls each for its entries, with errEntry
// for one that is JSON of another shape. Fields it does not know are skipped.
func readDirectory(body io.Reader, each func(entry, error)) error {
	m := &meter{r: body, all: maxDirectory, one: maxEntry}
	dec := json.NewDecoder(m)
	err := readNodes(dec, m, each)
	if err == nil {
		if _, e := dec.Token(); e != io.EOF {
			err = errors.New("something follows it")
		}
	}
	switch {
	case m.err != nil:
		return &networkError{m.err}
	case m.all <= 0:
		return &limitError{fmt.Sprintf("it is larger than %d MiB", maxDirectory>>20)}
	case m.one <= 0:
		return fmt.Errorf("an entry is larger than %d KiB", maxEntry>>10)
	}
	return err
}

// meter bounds what a decoder reads: in all, and for one entry, which it holds in
// memory.
type meter struct {
	r        io.Reader
	all, one int
	err      error // of r, other than its end
}

func (m *meter) Read(p []byte) (int, error) {
	limit := min(m.all, m.one)
	if limit <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := m.r.Read(p[:min(len(p), limit)])
	m.all -= n
	m.one -= n
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

var errDirectory = errors.New("its JSON is malformed")

func readNodes(dec *json.Decoder, m *meter, each func(entry, error)) error {
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errDirectory
	}
	found := false
	for dec.More() {
		m.one = maxEntry
		key, err := dec.Token()
		if err != nil {
			return errDirectory
		}
		if key != "nodes" {
			var skip json.RawMessage
			if dec.Decode(&skip) != nil {
				return errDirectory
			}
			continue
		}
		if found {
			return errors.New(`"nodes" is there twice`)
		}
		found = true
		if tok, err := dec.Token(); err != nil || tok != json.Delim('[') {
			return errDirectory
		}
		for n := 0; dec.More(); n++ {
			if n == maxNodes {
				return &limitError{fmt.Sprintf("it lists more than %d nodes", maxNodes)}
			}
			m.one = maxEntry
			var e entry
			err := dec.Decode(&e)
			if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
				each(entry{}, errEntry)
			} else if err != nil {
				return errDirectory
			} else {
				each(e, nil)
			}
		}
		if _, err := dec.Token(); err != nil {
			return errDirectory
		}
	}
	if tok, err := dec.Token(); err != nil || tok != json.Delim('}') || !found {
		return errDirectory
	}
	return nil
}

// admit adds an entry to d, as an offer if it can be verified.
func (t *Transport) admit(r *relay, d *directory, e entry, err error) {
	v := &verdict{reason: reasonMalformed}
	if err == nil {
		v = t.judge(d, e)
	}
	if v.node != nil {
		d.offers = append(d.offers, offer{v.node, max(e.Load.InFlight, 0), e.Load.Capacity})
		return
	}
	// The name is only what the relay says, and shown only if it is one.
	id, _ := identity.ParseID(string(e.ID))
	n := Node{ID: id, Relay: r.URL.String(), Refused: v.reason}
	if len(t.pinned) == 0 {
		// Whoever has nothing pinned is looking for what to pin.
		if signer, desc, err := e.Bundle.Open(time.Now()); err == nil && signer == id {
			n.Models, n.Capacity, n.NotAfter, n.InFlight = desc.Models, desc.Capacity, desc.NotAfter, max(e.Load.InFlight, 0)
		}
	}
	d.refused = append(d.refused, n)
}

// Why a node is refused.
const (
	reasonMalformed = "the relay's entry for it is malformed"
	reasonUnpinned  = "it is not pinned: pin it with --node ID if you know whose it is"
	reasonForged    = "its descriptor is not signed by the node it names"
	reasonExpired   = "its descriptor is not valid now: check the clocks of this machine and of the node"
	reasonName      = "the relay lists it under another node's name"
	reasonKey       = "it offers no ML-KEM-768+X25519 key, and no other is sealed to: update the node"
)

// reasonCut stands in the place of the nodes that were not read.
const reasonCut = "the relay's directory is not shown whole, because %v: pin the node that you look for by its ID, which is then asked for"

// judge verifies a bundle, once for as long as it is listed.
func (t *Transport) judge(d *directory, e entry) *verdict {
	// Looking at the name first spares a signature for each node of a large
	// directory that is not pinned; a relay that lies about it gains nothing.
	if !t.pinned[e.ID] {
		return &verdict{reason: reasonUnpinned}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%s", len(e.Bundle.Key), e.Bundle.Key, e.Bundle.Descriptor)
	digest := [32]byte(h.Sum(nil))
	v := d.verdicts[digest]
	if v == nil {
		if v = t.seen(digest); v == nil {
			v = verify(e.Bundle, t.trust)
		}
		if v.reason != reasonExpired { // the clock may be set right meanwhile
			d.verdicts[digest] = v
		}
	}
	if v.node != nil && v.node.id != e.ID {
		return &verdict{reason: reasonName}
	}
	return v
}

// seen finds the verdict on a bundle that some relay listed the last time.
func (t *Transport) seen(digest [32]byte) *verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.relays {
		if v := r.verdicts[digest]; v != nil {
			return v
		}
	}
	return nil
}

func verify(b identity.Bundle, trust identity.Trust) *verdict {
	id, d, err := identity.Verify(b, trust, time.Now())
	switch {
	case errors.Is(err, identity.ErrUntrusted):
		return &verdict{reason: reasonUnpinned}
	case errors.Is(err, identity.ErrExpired):
		return &verdict{reason: reasonExpired}
	case err != nil:
		return &verdict{reason: reasonForged}
	}
	key, err := ohttp.ParsePublicKey(d.Keys, ohttp.XWing)
	if err != nil {
		return &verdict{reason: reasonKey}
	}
	return &verdict{node: &node{id, key, d.Models, d.Capacity, d.NotBefore, d.NotAfter}}
}
