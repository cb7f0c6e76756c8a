package ohttp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// maxErrorBody and errorTime bound what is read of an answer that is not sealed, in
// bytes and in time: whoever is in between could drip it.
const (
	maxErrorBody = 64 << 10
	errorTime    = 10 * time.Second
)

// Transport seals requests to one node and opens its answers: the client's side of
// an exchange. It is an http.RoundTripper; the request given to it is the inner
// one, and may be for any https (or http) URL, which only the node sees.
//
// Nothing of the request is outside the seal. The outer one has Content-Type,
// Incremental, Header, and what Base adds of its own (set DisableCompression on an
// http.Transport, which otherwise asks for gzip). It cannot be sent again by Base,
// since a node refuses what it has seen: to retry, call RoundTrip again.
//
// RoundTrip returns when the header of the sealed answer has arrived. If the body
// ends with io.EOF, the answer is whole; if it broke off, Read returns an error
// that is ErrTruncated. Closing the body cancels the exchange.
//
// An answer that is not sealed is an error: ErrKey if the node does not know Key,
// else a *StatusError. There is no fallback to another key or format.
//
// A Transport is safe for concurrent use; its fields are not to be changed.
type Transport struct {
	// URL is where sealed requests are POSTed: the relay's resource for the node.
	URL string
	// Key is the node's key, checked by the caller. Required.
	Key *PublicKey
	// Base carries the outer requests. Default http.DefaultTransport.
	Base http.RoundTripper
	// Header is added to every outer request, where the relay reads it. May be nil.
	Header http.Header
	// Padding chooses the sizes of requests. The zero value means DefaultPadding.
	Padding Padding
	// Whole selects the format of plain RFC 9458, for gateways that know no other:
	// neither request nor answer streams, and they end at 8 MiB.
	Whole bool
}

// RoundTrip performs one exchange. It closes req.Body, also on error.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := t.seal(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("seal request: %w", err)
	}
	ctx, cancel := context.WithCancel(req.Context())
	outer, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, body)
	if err != nil {
		cancel()
		body.Close()
		return nil, fmt.Errorf("seal request: %w", err)
	}
	outer.ContentLength = body.length()
	for k, v := range t.Header {
		outer.Header[k] = v
	}
	if t.Whole {
		outer.Header.Set("Content-Type", mediaRequest)
	} else {
		outer.Header.Set("Content-Type", mediaChunkedReq)
		outer.Header.Set("Incremental", "?1")
	}
	if _, ok := outer.Header["User-Agent"]; !ok {
		outer.Header["User-Agent"] = nil // net/http would add its own
	}
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(outer)
	if err != nil {
		cancel()
		return nil, err
	}
	opened, err := open(ctx, req, resp, body.sealer, cancel)
	if err != nil {
		resp.Body.Close()
		cancel()
		return nil, err
	}
	return opened, nil
}

// seal sets up the sealed form of req.
func (t *Transport) seal(req *http.Request) (*requestBody, error) {
	switch {
	case t.Key == nil:
		return nil, errors.New("no key")
	case req.URL == nil:
		return nil, errors.New("no URL")
	}
	f := chunked
	if t.Whole {
		f = whole
	}
	s, err := newSealer(t.Key, f)
	if err != nil {
		return nil, err
	}
	return newRequestBody(s, req, t.Padding)
}

// open reads the sealed answer up to its content.
func open(ctx context.Context, req *http.Request, outer *http.Response, s *sealer, cancel func()) (*http.Response, error) {
	media, _, _ := mime.ParseMediaType(outer.Header.Get("Content-Type"))
	want := mediaResponse
	if s.format == chunked {
		want = mediaChunkedRes
	}
	if outer.StatusCode != http.StatusOK || media != want {
		return nil, unsealed(ctx, outer, media)
	}
	r := bufio.NewReader(outer.Body)
	nonce := make([]byte, s.key.suite.secretSize())
	if _, err := io.ReadFull(r, nonce); err != nil {
		return nil, fmt.Errorf("open answer: %w", truncated(err))
	}
	cipher, err := newChunkCipher(s.ctx, s.format, s.key.suite, s.enc, nonce)
	if err != nil {
		return nil, fmt.Errorf("open answer: %w", err)
	}
	m, err := readMessage(newSealedReader(r, cipher, s.format), false)
	if err != nil {
		return nil, fmt.Errorf("open answer: %w", err)
	}
	resp := &http.Response{
		Status: strconv.Itoa(m.status) + " " + http.StatusText(m.status), StatusCode: m.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: fieldsHeader(m.fields), ContentLength: m.length, Trailer: make(http.Header), Request: req,
	}
	c := &content{r: m, message: m, trailer: resp.Trailer, want: -1}
	if err := setContent(resp, c); err != nil {
		return nil, fmt.Errorf("open answer: %w", err)
	}
	resp.Body = &responseBody{c, outer.Body, cancel}
	return resp, nil
}

// setContent takes coding and length of the content from the header.
func setContent(resp *http.Response, c *content) error {
	coded := stripPadded(resp.Header)
	length, declared := int64(-1), false
	if lengths := resp.Header["Content-Length"]; len(lengths) > 0 && !coded {
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil || len(lengths) > 1 {
			return malformed("Content-Length")
		}
		length, declared = int64(n), true
	}
	bare := resp.Request.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent ||
		resp.StatusCode == http.StatusNotModified
	switch {
	case bare:
		// Nothing will follow; that nothing did is known at the message's end.
		c.want = 0
		resp.ContentLength = length
		if n, err := c.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			return err
		}
	case coded:
		c.r = &unpadder{r: c.message}
		resp.ContentLength = -1
	case declared:
		if c.message.length >= 0 && c.message.length != length {
			return malformed("Content-Length")
		}
		c.want, resp.ContentLength = length, length
	}
	return nil
}

// unsealed makes an error of an answer that did not come from behind the seal.
func unsealed(ctx context.Context, outer *http.Response, media string) error {
	var body []byte
	// The body of 101 is the bare connection, which no context ends.
	if outer.StatusCode >= 200 {
		ctx, cancel := context.WithTimeout(ctx, errorTime)
		defer cancel()
		stop := context.AfterFunc(ctx, func() { outer.Body.Close() })
		defer stop()
		// However it ends: what there is of it may still say what is wrong.
		body, _ = io.ReadAll(io.LimitReader(outer.Body, maxErrorBody))
	}
	var p problem
	if media == mediaProblem && json.Unmarshal(body, &p) == nil && p.Type == problemKey {
		return ErrKey
	}
	return &StatusError{outer.StatusCode, outer.Header.Get("Content-Type"), outer.Header.Get("Retry-After"), body}
}

// responseBody is the content of an opened answer.
type responseBody struct {
	*content
	outer  io.Closer
	cancel func()
}

// Close ends the exchange, all the way to the engine if it still runs. It may be
// called while Read blocks, which then returns.
func (b *responseBody) Close() error {
	b.cancel()
	return b.outer.Close()
}
