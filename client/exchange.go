package client

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"token.place/identity"
	"token.place/ohttp"
	"token.place/openai"
)

// NodeHeader is the field of an answer that names the node which gave it: the one
// party besides the app that could read the exchange. It is ours, not the node's.
const NodeHeader = "Tokenplace-Node"

const (
	// maxAttempts is how often a request is sealed, over all nodes, before the
	// last failure is the answer.
	maxAttempts = 5
	// queueTime is how long a request waits for room if all nodes are full, and
	// queueRetry about how long until it asks again when nothing of ours ends.
	queueTime  = 30 * time.Second
	queueRetry = time.Second
	// maxPeek is how much of an answer is read before it counts as begun.
	maxPeek = 4 << 10
	// maxOwn is how much is read of what may be the node's own answer.
	maxOwn = 64 << 10
	// maxRetryAfter bounds how long we tell an app to wait on a relay's word.
	maxRetryAfter = 10 * time.Minute
)

// Problems that mean something to us (spec/relay.md, spec/exchange.md).
const (
	mediaProblem = "application/problem+json"
	problemDate  = "https://iana.org/assignments/http-problem-types#date"
	ourProblems  = "https://token.place/problems/"
)

// exchange seals the request to one node after the other until one answers.
func (t *Transport) exchange(c *call) (*http.Response, error) {
	tr, began := &trial{}, time.Now()
	var last *http.Response // an engine's refusal, which the next node may better
	for n := 0; n < maxAttempts; n++ {
		way, err := t.choose(c, tr)
		if err != nil {
			if last == nil && tr.busy && time.Since(began) < queueTime && t.queue(c, tr) {
				n = -1
				continue
			}
			return settle(last, err)
		}
		tr.tried = append(tr.tried, way)
		resp, err := t.attempt(c, way)
		if err != nil {
			if ctx := c.req.Context().Err(); ctx != nil {
				return settle(last, ctx)
			}
			f := t.explain(way, err)
			if !f.retry {
				return settle(last, f.err)
			}
			since := t.blame(way, f.relay)
			if tr.err, tr.busy = f.err, f.busy; !f.busy {
				tr.since = since
			}
			continue
		}
		discard(last)
		if !retriable(resp.StatusCode) {
			t.praise(c, way)
			return resp, nil
		}
		t.blame(way, false)
		last = resp
	}
	return settle(last, tr.failure())
}

// queue waits until one of our exchanges has ended, or for a while, so that an
// app with more requests than its node has room for gets answers to all. It
// reports whether to try again.
func (t *Transport) queue(c *call, tr *trial) bool {
	timer := time.NewTimer(queueRetry/2 + rand.N(queueRetry))
	defer timer.Stop()
	select {
	case <-t.freed:
	case <-timer.C:
	case <-c.req.Context().Done():
	case <-t.ctx.Done():
		return false
	}
	tr.tried = nil
	return true
}

// retriable reports whether another node may well answer what this one's engine
// does not: it is full, starting, stuck or gone.
func retriable(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// settle ends the search without an answer: what an engine said goes before what
// was said outside the seal, or by ourselves. The end of the caller's context
// goes before both.
func settle(last *http.Response, err error) (*http.Response, error) {
	var ours *Error
	if last != nil && (err == nil || errors.As(err, &ours)) {
		return last, nil
	}
	discard(last)
	return nil, err
}

func discard(resp *http.Response) {
	if resp != nil {
		resp.Body.Close()
	}
}

// attempt seals the request to one node and waits for the first byte of the
// answer's body, so that a node that dies before it can be replaced.
func (t *Transport) attempt(c *call, way route) (*http.Response, error) {
	id := string(way.member.node.id)
	seal := ohttp.Transport{URL: way.relay.URL.String() + "/v1/exchange/" + id, Key: way.member.node.key, Base: way.relay}
	req := (&http.Request{
		Method: http.MethodPost,
		// The node is the target; what the app took for one stays here.
		URL:           &url.URL{Scheme: "https", Host: id, Path: c.path},
		Header:        c.header,
		Body:          io.NopCloser(bytes.NewReader(c.body)),
		ContentLength: int64(len(c.body)),
	}).WithContext(c.req.Context())
	resp, err := seal.RoundTrip(req)
	if err != nil {
		t.release(way)
		return nil, err
	}
	body := &answer{src: resp.Body, release: func() { t.release(way) }}
	err = body.check(resp)
	if err == nil {
		err = body.peek()
	}
	if err != nil {
		body.Close()
		return nil, err
	}
	body.release = func() { t.release(way); t.wake() }
	resp.Body, resp.Request = body, c.req
	resp.Header.Set(NodeHeader, id)
	return resp, nil
}

var (
	errRedirect = errors.New("the node answered with a redirect")
	errClock    = errors.New("the node's clock and ours differ")
)

// busyError is the word of a node, not of its engine, that all its relays together
// have filled it.
type busyError struct{ retryAfter string }

func (e *busyError) Error() string { return "the node is full" }

// answer is the body of an opened answer. Its node counts as busy until the
// body has ended or is closed.
type answer struct {
	src      io.ReadCloser
	first    []byte // read ahead
	firstErr error  // what came after first
	once     sync.Once
	release  func()
}

// check refuses answers that an API never gives, and those that are the node's own
// about the exchange. A redirect followed by the app would take its prompt, and its
// key, past the seal.
func (a *answer) check(resp *http.Response) error {
	if resp.StatusCode < 200 || resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return errRedirect
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	date := resp.StatusCode == http.StatusBadRequest && media == mediaProblem
	if !date && resp.StatusCode != http.StatusTooManyRequests {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(a.src, maxOwn))
	if err != nil {
		return err
	}
	a.first = body
	if date {
		var problem struct{ Type string }
		if json.Unmarshal(body, &problem) == nil && problem.Type == problemDate {
			return errClock
		}
	} else if e, _ := openai.ReadError(bytes.NewReader(body)); e.Code == "node_busy" {
		return &busyError{resp.Header.Get("Retry-After")}
	}
	return nil
}

// peek reads the first bytes. An error means that there were none.
func (a *answer) peek() error {
	if len(a.first) > 0 {
		return nil
	}
	buf := make([]byte, maxPeek)
	n, err := 0, error(nil)
	for n == 0 && err == nil {
		n, err = a.src.Read(buf)
	}
	if a.first, a.firstErr = buf[:n], err; n == 0 && err != io.EOF {
		return err
	}
	return nil
}

func (a *answer) Read(p []byte) (int, error) {
	if len(a.first) > 0 {
		n := copy(p, a.first)
		a.first = a.first[n:]
		return n, nil
	}
	n, err := 0, a.firstErr
	if err == nil {
		n, err = a.src.Read(p)
	}
	if err != nil {
		a.once.Do(a.release)
	}
	return n, err
}

// Close ends the exchange, all the way to the engine if it still runs.
func (a *answer) Close() error {
	a.once.Do(a.release)
	return a.src.Close()
}

// failure is what came of an attempt that got no answer.
type failure struct {
	err   *Error
	retry bool // another attempt may work
	relay bool // the relay is at fault, for all nodes
	busy  bool // the node is full
}

// explain makes an error for the app of an attempt's. Apart from a sealed answer
// anything may come from the relay or from somebody in its place. It leads to
// another attempt or to an error in our own words, and to nothing else; none of
// its text is shown.
func (t *Transport) explain(way route, err error) failure {
	id, relay := way.member.node.id, way.relay
	var (
		unsealed *ohttp.StatusError
		network  *networkError
		full     *busyError
	)
	switch {
	case errors.Is(err, ohttp.ErrKey):
		return failure{failf(http.StatusBadGateway, "node_key",
			"node %s does not open what is sealed to the key that %s has for it: try again in a minute; if it stays so, restart the node", id, relay.name()), true, false, false}
	case errors.Is(err, errClock):
		return failure{failf(http.StatusBadRequest, "clock",
			"node %s refuses the request because its clock and this machine's are more than ten minutes apart: set them right", id), false, false, false}
	case errors.Is(err, errRedirect):
		return failure{failf(http.StatusBadGateway, "bad_answer", "node %s answered with a redirect, which no engine does: tell its operator", id), true, false, false}
	case errors.Is(err, ohttp.ErrTruncated):
		return failure{failf(http.StatusBadGateway, "node_lost",
			"the connection to node %s broke before it answered: try again, or pin another node as well", id), true, false, false}
	case errors.As(err, &full):
		return busy(id, full.retryAfter)
	case errors.As(err, &unsealed):
		return relay.explain(id, unsealed)
	case errors.As(err, &network):
		return failure{relay.unreachable(err), true, true, false}
	}
	return failure{failf(http.StatusBadGateway, "bad_answer", "the answer of node %s does not open: try again, or pin another node as well", id), true, false, false}
}

// busy is what came of an attempt at a node that is full.
func busy(id identity.ID, after string) failure {
	e := failf(http.StatusServiceUnavailable, "node_busy", "node %s has no room for another exchange: try again soon, or pin another node as well", id)
	e.RetryAfter = retryAfter(after)
	return failure{e, true, false, true}
}

// explain makes an error of an answer that was not sealed.
func (r *relay) explain(id identity.ID, e *ohttp.StatusError) failure {
	media, _, _ := mime.ParseMediaType(e.ContentType)
	var problem struct{ Type string }
	if media != mediaProblem || json.Unmarshal(e.Body, &problem) != nil {
		return failure{r.notServed(e.Status, e.RetryAfter), true, true, false}
	}
	slug, _ := strings.CutPrefix(problem.Type, ourProblems)
	switch {
	case slug == "node-unavailable":
		f := failure{failf(http.StatusServiceUnavailable, "node_unavailable",
			"node %s is not connected to %s now: try again soon, or pin another node as well", id, r.name()), true, false, false}
		f.err.RetryAfter = retryAfter(e.RetryAfter)
		return f
	case slug == "node-busy":
		return busy(id, e.RetryAfter)
	case slug == "relay-busy":
		return failure{r.notServed(e.Status, e.RetryAfter), true, true, false}
	case slug == "too-large":
		return failure{failf(http.StatusRequestEntityTooLarge, "request_too_large", "the request is too large for %s or the node: send less at once, for example smaller images or fewer messages", r.name()), false, false, false}
	case slug == "slow-body":
		return failure{failf(http.StatusBadGateway, "slow_network", "sending the request to %s took too long: try again over a better connection", r.name()), false, false, false}
	case slug == "exchange-timeout":
		return failure{failf(http.StatusGatewayTimeout, "node_timeout", "node %s did not answer in the time that %s allows: ask for a shorter answer, or for a stream", id, r.name()), false, false, false}
	case e.Status >= 500 || e.Status == http.StatusBadRequest:
		return failure{failf(http.StatusBadGateway, "node_lost",
			"%s could not get an answer from node %s (status %d): try again, or pin another node as well", r.name(), id, e.Status), true, false, false}
	}
	return failure{r.notServed(e.Status, e.RetryAfter), true, true, false}
}

// notServed is the error for an answer of the relay that is none of those that a
// relay gives.
func (r *relay) notServed(status int, after string) *Error {
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		e := failf(http.StatusServiceUnavailable, "relay_busy", "%s takes no more requests now (status %d): try again later, or use another relay as well", r.name(), status)
		e.RetryAfter = retryAfter(after)
		return e
	}
	return failf(http.StatusBadGateway, "relay_error",
		"%s gave an answer that no relay gives (status %d): check that the URL is a token.place relay's", r.name(), status)
}

// retryAfter reads a Retry-After in seconds.
func retryAfter(s string) time.Duration {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}

// unreachable is the error for a relay that cannot be talked to. It keeps the
// kind of err and none of its text, which can have addresses in it.
func (r *relay) unreachable(err error) *Error {
	var (
		dns  *net.DNSError
		cert *tls.CertificateVerificationError
		op   net.Error
	)
	why := "the connection failed: check the network and that the relay runs"
	switch {
	case errors.Is(err, identity.ErrPeer):
		why = "another identity than " + string(r.ID) + " answers there: check the ID behind the # with the relay's operator, and do not go on without"
	case errors.As(err, &dns):
		why = "its name is not known: check the URL and the network"
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "the connection is refused: check that the relay runs, and the port"
	case errors.As(err, &cert):
		why = "no certificate authority vouches for it: if the relay has an ID, put it behind the URL, as https://host:port/#ID"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &op) && op.Timeout():
		why = "it does not answer in time: check the network and that the relay runs"
	}
	return failf(http.StatusBadGateway, "relay_unreachable", "cannot reach %s: %s", r.name(), why)
}
