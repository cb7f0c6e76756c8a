package ohttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"token.place/ohttp"
)

// A Content-Length that is not true is found out at either end.
func TestContentLengthLies(t *testing.T) {
	var readErr error
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { _, readErr = io.ReadAll(r.Body) })
	for declared, ok := range map[string]bool{"2": false, "3": true, "4": false} {
		askSealed(t, n, ohttp.Chunked, message(func(m *ohttp.Message) {
			m.Known, m.Content = false, []byte("abc")
			m.Fields = append(m.Fields, ohttp.NewField("content-length", declared))
		}).Append(nil))
		if (readErr == nil) != ok {
			t.Errorf("request declares %s of 3 octets: %v", declared, readErr)
		}
		for _, known := range []bool{false, true} {
			answer := &ohttp.Message{Known: known, Status: 200, Content: []byte("abc"),
				Fields: []ohttp.Field{ohttp.NewField("content-length", declared)}}
			if _, err := readAnswer(t, answer.Append(nil)); (err == nil) != ok {
				t.Errorf("answer declares %s of 3 octets, known %v: %v", declared, known, err)
			}
		}
	}
}

// readAnswer has a Transport read an answer with this plaintext.
func readAnswer(t testing.TB, pieces ...[]byte) (string, error) {
	t.Helper()
	keys := newKeys(t, ohttp.KeysConfig{})
	tr := &ohttp.Transport{URL: "http://relay/", Key: publicKey(t, keys, ohttp.X25519)}
	tr.Base = roundTripFunc(func(r *http.Request) (*http.Response, error) {
		defer r.Body.Close()
		sealed, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		o, err := ohttp.OpenRequest(keys, ohttp.Chunked, sealed)
		if err != nil {
			return nil, err
		}
		answer, err := o.SealResponse(make([]byte, 32), pieces...)
		header := http.Header{"Content-Type": {"message/ohttp-chunked-res"}}
		return &http.Response{StatusCode: 200, Header: header, Body: io.NopCloser(bytes.NewReader(answer))}, err
	})
	resp, err := tr.RoundTrip(newRequest(t, "GET", nil))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestAnswersThatBreakRules(t *testing.T) {
	field := func(name, value string) []byte {
		m := &ohttp.Message{Status: 200, Content: []byte("abc"), Fields: []ohttp.Field{ohttp.NewField(name, value)}}
		return m.Append(nil)
	}
	// Informational responses cost the budget of the header section too.
	flood := append([]byte{3}, bytes.Repeat([]byte{0x40, 0x67, 0}, 5000)...)
	for name, plain := range map[string][]byte{
		"Content-Length":      field("content-length", "x"),
		"not padded":          field("content-encoding", "padded"),
		"nothing":             nil,
		"a request":           message(nil).Append(nil),
		"informational flood": append(flood, 0x40, 0xc8),
		"after the end":       append(field("a", "b"), 0, 0, 1),
		"204 with content":    append([]byte{3, 0x40, 0xcc, 0, 1, 'x'}, 0, 0),
		"endless content":     {3, 0x40, 0xc8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"endless known":       {1, 0x40, 0xc8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		if body, err := readAnswer(t, plain); err == nil {
			t.Errorf("%s: accepted with %q", name, body)
		}
	}
	long := strings.Repeat("v", 16_000)
	m := &ohttp.Message{Status: 103, Known: true, Fields: []ohttp.Field{ohttp.NewField("link", long)}}
	informational := m.Append(nil)
	informational = informational[:len(informational)-2]
	if body, err := readAnswer(t, append(informational, 0x40, 0xc8, 0, 1, 'x')); err != nil || body != "x" {
		t.Errorf("informational response: %q, %v", body, err)
	}
}

func TestStatusesThatCannotBeCarried(t *testing.T) {
	for _, status := range []int{101, 600, 999} {
		n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
		if resp, _ := roundTrip(t, n.transport(t), newRequest(t, "GET", nil)); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%d becomes %d", status, resp.StatusCode)
		}
	}
}

// Damage behind the first chunk but before the end of the header is told inside the
// seal: the key is right.
func TestDamagedHeader(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { t.Error("called") })
	plain := message(func(m *ohttp.Message) {
		m.Fields = append(m.Fields, ohttp.NewField("a", strings.Repeat("b", 100)))
	}).Append(nil)
	s, err := ohttp.SealRequest(publicKey(t, n.keys, ohttp.X25519), ohttp.Chunked, plain[:20], plain[20:])
	if err != nil {
		t.Fatal(err)
	}
	s.Bytes[len(s.Bytes)-50] ^= 1
	_, b := post(t, n, mediaChunked, bytes.NewReader(s.Bytes))
	if b, err = s.OpenResponse(b); err != nil {
		t.Fatal(err)
	}
	m, err := ohttp.ReadMessage(b, false)
	if err != nil || m.Status != 400 || !bytes.Contains(m.Content, []byte(ohttp.ProblemMalformed)) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestLargeWholeMessages(t *testing.T) {
	large := make([]byte, ohttp.MaxWhole)
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for range 3 {
			if _, err := w.Write(large[:len(large)/2]); err != nil {
				return
			}
		}
	})
	tr := n.transport(t)
	tr.Whole = true
	if resp, err := tr.RoundTrip(newRequest(t, "GET", nil)); err == nil {
		resp.Body.Close()
		t.Error("an answer past the limit was held in memory")
	}
	resp, err := tr.RoundTrip(newRequest(t, "POST", bytes.NewReader(large)))
	if err == nil {
		resp.Body.Close()
		t.Error("a request past the limit was held in memory")
	}
}

// A first chunk that does not come is not waited for without end.
func TestSlowFirstChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { t.Error("called") })
		n.handler.BodyTimeout = time.Minute
		s, err := ohttp.SealRequest(publicKey(t, n.keys, ohttp.XWing), ohttp.Chunked, message(nil).Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		pr, _ := io.Pipe() // nothing more comes
		start := time.Now()
		body := struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(s.Bytes[:len(s.Bytes)-1]), pr), pr}
		resp, b := post(t, n, mediaChunked, body)
		if resp.StatusCode != http.StatusRequestTimeout || time.Since(start) != time.Minute {
			t.Errorf("%d %s after %v", resp.StatusCode, b, time.Since(start))
		}
		n.base.CloseIdleConnections()
	})
}

// Next learns that the client has gone from what it writes, if not from its context.
func TestWriteAfterClientLeft(t *testing.T) {
	ended := make(chan error)
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for {
			if _, err := w.Write(make([]byte, 50_000)); err != nil {
				ended <- err
				return
			}
		}
	})
	resp, err := n.transport(t).RoundTrip(newRequest(t, "GET", nil))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := <-ended; err == nil {
		t.Error("no error")
	}
}

// No error and no problem quotes what was received.
func TestErrorsQuoteNothing(t *testing.T) {
	const canary = "canary"
	for _, plain := range [][]byte{
		message(func(m *ohttp.Message) { m.Path = canary }).Append(nil),
		message(func(m *ohttp.Message) { m.Authority = canary + "@x" }).Append(nil),
		message(func(m *ohttp.Message) { m.Fields = []ohttp.Field{ohttp.NewField(canary, "\n")} }).Append(nil),
		message(func(m *ohttp.Message) { m.Fields = []ohttp.Field{ohttp.NewField("date", canary)} }).Append(nil),
	} {
		n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { t.Error("called") })
		if m := askSealed(t, n, ohttp.Chunked, plain); bytes.Contains(m.Content, []byte(canary)) {
			t.Errorf("problem is %s", m.Content)
		}
	}
	for _, field := range []ohttp.Field{ohttp.NewField(canary, "\n"), ohttp.NewField("content-length", canary)} {
		m := &ohttp.Message{Status: 200, Fields: []ohttp.Field{field}}
		if _, err := readAnswer(t, m.Append(nil)); err == nil || strings.Contains(fmt.Sprint(err), canary) {
			t.Errorf("error is %v", err)
		}
	}
	if errors.Is(ohttp.ErrKey, ohttp.ErrTruncated) {
		t.Error("errors are not told apart")
	}
}

// Whoever is in between cannot hold an exchange by how it ends without an answer.
func TestUnsealedAnswersEnd(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		drip   bool
		cancel time.Duration // 0 is never
		want   time.Duration
	}{
		"upgrade":               {101, false, 0, 0},
		"drip":                  {503, true, 0, 10 * time.Second},
		"silence":               {503, false, 0, 10 * time.Second},
		"the caller's end":      {503, false, time.Second, time.Second},
		"drip, and not ended":   {200, true, 0, 10 * time.Second},
		"drip, the caller ends": {307, true, time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := newKeys(t, ohttp.KeysConfig{})
				var work sync.WaitGroup
				tr := &ohttp.Transport{URL: "https://relay/", Key: publicKey(t, keys, ohttp.XWing)}
				tr.Base = roundTripFunc(func(r *http.Request) (*http.Response, error) {
					r.Body.Close()
					in, out := io.Pipe() // which, like a bare connection, knows no context
					work.Go(func() {
						for test.drip {
							time.Sleep(time.Second / 2)
							if _, err := io.WriteString(out, "{"); err != nil {
								return
							}
						}
					})
					return &http.Response{StatusCode: test.status, Header: http.Header{"Content-Type": {"application/problem+json"}}, Body: in}, nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.cancel > 0 {
					time.AfterFunc(test.cancel, cancel)
				}
				start := time.Now()
				_, err := tr.RoundTrip(newRequest(t, "POST", strings.NewReader("x")).WithContext(ctx))
				var unsealed *ohttp.StatusError
				if !errors.As(err, &unsealed) || unsealed.Status != test.status {
					t.Errorf("error is %v", err)
				}
				if d := time.Since(start); d != test.want {
					t.Errorf("it took %v, want %v", d, test.want)
				}
				work.Wait()
			})
		})
	}
}

// The length that is promised is the length that comes, wherever head and content
// end in a chunk.
func TestLengthOfSealedRequests(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	key := publicKey(t, keys, ohttp.X25519)
	for _, tight := range []bool{false, true} {
		for _, content := range []int{0, 1, 2, 40_000} {
			tr := &ohttp.Transport{URL: "https://relay/", Key: key}
			if tight {
				tr.Padding.Request = []int{1}
			}
			heads := map[int64]bool{}
			tr.Base = roundTripFunc(func(r *http.Request) (*http.Response, error) {
				n, err := io.Copy(io.Discard, r.Body)
				if err != nil || n != r.ContentLength {
					t.Errorf("%d octets of content, tight %v: promised %d, sent %d, %v", content, tight, r.ContentLength, n, err)
				}
				heads[n] = true
				return nil, io.EOF
			})
			for _, near := range []int{ohttp.MaxChunk, 2 * ohttp.MaxChunk, 3 * ohttp.MaxChunk} {
				for n := near - 200; n < near+8; n++ {
					req := newRequest(t, "POST", nil)
					if content > 0 {
						req = newRequest(t, "POST", strings.NewReader(strings.Repeat("b", content)))
					}
					req.Header.Set("A", strings.Repeat("a", n))
					tr.RoundTrip(req)
				}
			}
			if tight && len(heads) < 3*200 {
				t.Errorf("only %d lengths", len(heads))
			}
		}
	}
}
