package relay

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// problem is an answer outside the seal (RFC 9457). It is for programs by its
// type and for people by its detail, which says what to do.
type problem struct {
	slug   string // of the type, https://token.place/problems/{slug}
	title  string
	status int
	detail string
	retry  int // Retry-After in seconds, 0 for none
}

const problemTypes = "https://token.place/problems/"

var (
	notFound = problem{slug: "not-found", title: "No such resource", status: http.StatusNotFound,
		detail: "A relay has /v1/exchange/{node}, /v1/nodes, /v1/nodes/{node}/ohttp-keys, /v1/models, /healthz and /readyz."}
	badMethod = problem{slug: "method-not-allowed", title: "Method not allowed", status: http.StatusMethodNotAllowed,
		detail: "See the Allow header."}
	badQuery = problem{slug: "bad-query", title: "Malformed query", status: http.StatusBadRequest,
		detail: "Want model=NAME at most once and id=ID up to 100 times, each ID of 26 characters a-z and 2-7."}
	badRequest = problem{slug: "malformed-request", title: "Malformed HTTP request", status: http.StatusBadRequest}
	badBody    = problem{slug: "malformed-request", title: "The request's body did not arrive whole", status: http.StatusBadRequest,
		detail: "Its framing is malformed, or it ended early."}
	plaintextRefused = problem{slug: "plaintext-refused", title: "A relay takes no plaintext", status: http.StatusMisdirectedRequest,
		detail: "This is a relay: it carries sealed requests only, and it has not read the body of this one. " +
			"Run `tokenplace serve` on your own computer and point the SDK at the base URL it prints, http://127.0.0.1:PORT/v1: " +
			"requests are sealed there before they come here."}
	badMediaType = problem{slug: "unsupported-media-type", title: "Not a sealed message", status: http.StatusUnsupportedMediaType,
		detail: "An exchange is a message/ohttp-req or a message/ohttp-chunked-req (RFC 9458)."}
	oldVersion = problem{slug: "malformed-request", title: "HTTP version too old", status: http.StatusHTTPVersionNotSupported,
		detail: "An exchange needs HTTP/1.1 or HTTP/2."}
	tooLarge = problem{slug: "too-large", title: "The sealed message is too large", status: http.StatusRequestEntityTooLarge,
		detail: "Send less: a shorter conversation, smaller images or audio."}
	slowBody = problem{slug: "slow-body", title: "The request's body came too slowly", status: http.StatusRequestTimeout,
		detail: "Send it again over a better connection."}
	nodeUnavailable = problem{slug: "node-unavailable", title: "The node is not connected to this relay", status: http.StatusServiceUnavailable, retry: 5,
		detail: "It may be connected to another relay, or be back soon; GET /v1/nodes lists those that are here."}
	nodeBusy = problem{slug: "node-busy", title: "The node is at its capacity", status: http.StatusServiceUnavailable, retry: 1,
		detail: "Choose another node, or come back."}
	relayBusy = problem{slug: "relay-busy", title: "The relay is at its capacity", status: http.StatusServiceUnavailable, retry: 1,
		detail: "Use another relay, or come back."}
	nodeFailed = problem{slug: "node-failed", title: "The node gave no answer", status: http.StatusBadGateway,
		detail: "It went away, or what it sent is not a sealed answer. Nothing of an answer was delivered: choose another node."}
	exchangeTimeout = problem{slug: "exchange-timeout", title: "The exchange took too long", status: http.StatusGatewayTimeout,
		detail: "The node had not answered by then."}
)

var (
	problemType = []string{"application/problem+json"}
	noStore     = []string{"no-store"}
)

// drainTime is how long a client may take to send the rest of a small body
// that was refused, so that its connection can be used again.
const drainTime = 5 * time.Second

// maxDrain is how much of a refused body is worth reading for that.
const maxDrain = 64 << 10

// refuse answers with p. What is left of the request's body is read only if it
// is small and on its way; else an HTTP/1 connection ends after the answer.
func (r *Relay) refuse(w http.ResponseWriter, req *http.Request, p problem) {
	rc := http.NewResponseController(w)
	if req.ProtoMajor == 1 && req.ContentLength != 0 {
		if req.ContentLength < 0 || req.ContentLength > maxDrain || req.Header.Get("Expect") != "" {
			endAfterAnswer(w, req)
		} else {
			rc.SetReadDeadline(time.Now().Add(drainTime))
		}
	}
	rc.SetWriteDeadline(time.Now().Add(r.cfg.StallTimeout))
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{problemTypes + p.slug, p.title, p.status, p.detail})
	if err != nil {
		panic("internal error: " + err.Error())
	}
	h := w.Header()
	h["Content-Type"], h["Cache-Control"] = problemType, noStore
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retry))
	}
	w.WriteHeader(p.status)
	w.Write(body)
}

// endAfterAnswer ends an HTTP/1 connection after the answer, without reading
// what is left of the request.
func endAfterAnswer(w http.ResponseWriter, req *http.Request) {
	if req.ProtoMajor != 1 {
		return
	}
	w.Header()["Connection"] = []string{"close"}
	if c, ok := req.Context().Value(connKey{}).(*strictConn); ok {
		c.refuse()
	}
}

// connKey is the context key of the strictConn that a request came on.
type connKey struct{}
