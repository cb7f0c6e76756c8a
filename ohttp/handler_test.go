package ohttp_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/ohttp"
)

const (
	mediaWhole   = "message/ohttp-req"
	mediaChunked = "message/ohttp-chunked-req"
)

// post sends a sealed request as it is.
func post(t testing.TB, n *node, media string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://node:80/", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", media)
	resp, err := n.base.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// problemType returns the type of a problem, "" if b is none.
func problemType(contentType string, b []byte) string {
	var p struct{ Type, Title string }
	if contentType != "application/problem+json" || json.Unmarshal(b, &p) != nil || p.Title == "" {
		return ""
	}
	return p.Type
}

// message is a request with what the tests leave alone filled in.
func message(change func(m *ohttp.Message)) *ohttp.Message {
	m := &ohttp.Message{Request: true, Known: true, Method: "POST", Scheme: "https", Authority: "n.example", Path: "/v1/x"}
	if change != nil {
		change(m)
	}
	return m
}

// askSealed sends plaintext as the only chunk and returns the opened answer.
func askSealed(t testing.TB, n *node, f ohttp.Format, plain []byte) *ohttp.Message {
	t.Helper()
	s, err := ohttp.SealRequest(publicKey(t, n.keys, ohttp.X25519), f, plain)
	if err != nil {
		t.Fatal(err)
	}
	media := mediaWhole
	if f == ohttp.Chunked {
		media = mediaChunked
	}
	resp, b := post(t, n, media, bytes.NewReader(s.Bytes))
	if want := strings.Replace(media, "req", "res", 1); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != want {
		t.Fatalf("answer outside the seal: %d %s %s", resp.StatusCode, resp.Header.Get("Content-Type"), b)
	}
	plain, err = s.OpenResponse(b)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ohttp.ReadMessage(plain, false)
	if err != nil {
		t.Fatalf("answer %q: %v", plain, err)
	}
	return m
}

func TestProblemsOutsideTheSeal(t *testing.T) {
	called := false
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { called = true })
	n.handler.MaxRequest = 100_000
	seal := func(f ohttp.Format, pieces ...[]byte) []byte {
		s, err := ohttp.SealRequest(publicKey(t, n.keys, ohttp.XWing), f, pieces...)
		if err != nil {
			t.Fatal(err)
		}
		return s.Bytes
	}
	plain := message(nil).Append(nil)
	change := func(i int) []byte {
		b := seal(ohttp.Chunked, plain)
		b[i] ^= 0x55
		return b
	}
	seen := seal(ohttp.Chunked, plain)
	if resp, b := post(t, n, mediaChunked, bytes.NewReader(seen)); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	called = false
	for name, tc := range map[string]struct {
		media  string
		body   []byte
		status int
		typ    string
	}{
		"media type":        {"application/json", plain, 415, ohttp.ProblemMedia},
		"no media type":     {"", plain, 415, ohttp.ProblemMedia},
		"answer's type":     {"message/ohttp-res", plain, 415, ohttp.ProblemMedia},
		"empty":             {mediaChunked, nil, 400, ohttp.ProblemMalformed},
		"header cut short":  {mediaChunked, plain[:5], 400, ohttp.ProblemMalformed},
		"enc cut short":     {mediaChunked, seen[:100], 400, ohttp.ProblemMalformed},
		"no chunk":          {mediaChunked, seal(ohttp.Chunked), 400, ohttp.ProblemMalformed},
		"last chunk short":  {mediaChunked, append(seal(ohttp.Chunked), 0, 1, 2), 400, ohttp.ProblemKey},
		"unknown key id":    {mediaChunked, change(0), 400, ohttp.ProblemKey},
		"unknown KEM":       {mediaChunked, change(1), 400, ohttp.ProblemKey},
		"unknown KDF":       {mediaChunked, change(3), 400, ohttp.ProblemKey},
		"unknown AEAD":      {mediaChunked, change(5), 400, ohttp.ProblemKey},
		"enc changed":       {mediaChunked, change(50), 400, ohttp.ProblemKey},
		"other format":      {mediaWhole, seal(ohttp.Chunked, plain), 400, ohttp.ProblemKey},
		"replay":            {mediaChunked, seen, 400, ohttp.ProblemReplay},
		"too large":         {mediaChunked, make([]byte, 100_001), 413, ohttp.ProblemTooLarge},
		"chunk too large":   {mediaChunked, seal(ohttp.Chunked, make([]byte, ohttp.MaxChunk+1), nil), 400, ohttp.ProblemMalformed},
		"first chunk empty": {mediaChunked, seal(ohttp.Chunked, nil, plain), 400, ohttp.ProblemMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			resp, b := post(t, n, tc.media, bytes.NewReader(tc.body))
			typ := problemType(resp.Header.Get("Content-Type"), b)
			if resp.StatusCode != tc.status || typ != tc.typ {
				t.Errorf("%d %s, want %d %s", resp.StatusCode, b, tc.status, tc.typ)
			}
			if called {
				t.Error("Next was called")
			}
		})
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://node:80/", nil)
	resp, err := n.base.RoundTrip(req)
	if err != nil || resp.StatusCode != 405 || resp.Header.Get("Allow") != "POST" {
		t.Errorf("GET: %v, %v", resp, err)
	}
	resp.Body.Close()
}

// zeroReader is a body without end, counted.
type zeroReader struct{ n int }

func (z *zeroReader) Read(p []byte) (int, error) {
	clear(p)
	z.n += len(p)
	return len(p), nil
}

func TestEndlessBody(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {})
	for _, media := range []string{mediaWhole, mediaChunked} {
		s, err := ohttp.SealRequest(publicKey(t, n.keys, ohttp.XWing), ohttp.Chunked, []byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		// The header is right, so the node has to look at what follows.
		rest := &zeroReader{}
		body := io.MultiReader(bytes.NewReader(s.Bytes[:7+1120]), io.LimitReader(rest, 1<<30))
		if resp, b := post(t, n, media, body); resp.StatusCode/100 != 4 {
			t.Errorf("%s: %d %s", media, resp.StatusCode, b)
		}
		if rest.n > 40<<20 {
			t.Errorf("%s: the node read %d octets", media, rest.n)
		}
	}
}

func TestInnerRequestRules(t *testing.T) {
	var got *http.Request
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		got = r
		io.Copy(io.Discard, r.Body)
	})
	fields := func(pairs ...string) func(*ohttp.Message) {
		return func(m *ohttp.Message) {
			for i := 0; i < len(pairs); i += 2 {
				m.Fields = append(m.Fields, ohttp.NewField(pairs[i], pairs[i+1]))
			}
		}
	}
	now := time.Now().UTC()
	date := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for name, tc := range map[string]struct {
		change func(*ohttp.Message)
		status int
		typ    string
	}{
		"plain":                {nil, 200, ""},
		"no Date":              {fields("x", "y"), 200, ""},
		"Date in time":         {fields("date", date(0)), 200, ""},
		"Date 9 minutes ahead": {fields("date", date(9*time.Minute)), 200, ""},
		"Date 9 minutes ago":   {fields("date", date(-9*time.Minute)), 200, ""},
		"Date ahead":           {fields("date", date(11*time.Minute)), 400, ohttp.ProblemDate},
		"Date ago":             {fields("date", date(-11*time.Minute)), 400, ohttp.ProblemDate},
		"no date":              {fields("date", "yesterday"), 400, ohttp.ProblemDate},
		"two Dates":            {fields("date", date(0), "date", date(0)), 400, ohttp.ProblemDate},
		"expects 100":          {fields("expect", "100-continue"), 417, ohttp.ProblemMalformed},
		"CONNECT":              {func(m *ohttp.Message) { m.Method = "CONNECT" }, 400, ohttp.ProblemMalformed},
		"method":               {func(m *ohttp.Message) { m.Method = "GET /" }, 400, ohttp.ProblemMalformed},
		"no method":            {func(m *ohttp.Message) { m.Method = "" }, 400, ohttp.ProblemMalformed},
		"scheme":               {func(m *ohttp.Message) { m.Scheme = "file" }, 400, ohttp.ProblemMalformed},
		"relative path":        {func(m *ohttp.Message) { m.Path = "v1" }, 400, ohttp.ProblemMalformed},
		"no path":              {func(m *ohttp.Message) { m.Path = "" }, 400, ohttp.ProblemMalformed},
		"URL as path":          {func(m *ohttp.Message) { m.Path = "http://evil/" }, 400, ohttp.ProblemMalformed},
		"authority as path":    {func(m *ohttp.Message) { m.Path = "//evil/" }, 400, ohttp.ProblemMalformed},
		"fragment":             {func(m *ohttp.Message) { m.Path = "/x#y" }, 400, ohttp.ProblemMalformed},
		"space in path":        {func(m *ohttp.Message) { m.Path = "/x HTTP/1.1" }, 400, ohttp.ProblemMalformed},
		"line feed in path":    {func(m *ohttp.Message) { m.Path = "/x\n" }, 400, ohttp.ProblemMalformed},
		"bad escape":           {func(m *ohttp.Message) { m.Path = "/%zz" }, 400, ohttp.ProblemMalformed},
		"asterisk":             {func(m *ohttp.Message) { m.Path = "*" }, 400, ohttp.ProblemMalformed},
		"asterisk for OPTIONS": {func(m *ohttp.Message) { m.Method, m.Path = "OPTIONS", "*" }, 200, ""},
		"user in authority":    {func(m *ohttp.Message) { m.Authority = "u:p@n.example" }, 400, ohttp.ProblemMalformed},
		"authority":            {func(m *ohttp.Message) { m.Authority = "n.example/x" }, 400, ohttp.ProblemMalformed},
		"authority not ASCII":  {func(m *ohttp.Message) { m.Authority = "n\xc3\xa9" }, 400, ohttp.ProblemMalformed},
		"port":                 {func(m *ohttp.Message) { m.Authority = "n.example:8080" }, 200, ""},
		"Host instead":         {func(m *ohttp.Message) { m.Authority = ""; fields("host", "n.example")(m) }, 200, ""},
		"same Host":            {fields("host", "N.example"), 200, ""},
		"other Host":           {fields("host", "evil"), 400, ohttp.ProblemMalformed},
		"pseudo-field":         {fields(":method", "GET"), 400, ohttp.ProblemMalformed},
		"field name":           {fields("a b", "x"), 400, ohttp.ProblemMalformed},
		"field value":          {fields("a", "x\r\ny: z"), 400, ohttp.ProblemMalformed},
		"Content-Length":       {func(m *ohttp.Message) { m.Content = []byte("abc"); fields("content-length", "3")(m) }, 200, ""},
		"other Content-Length": {func(m *ohttp.Message) { m.Content = []byte("abc"); fields("content-length", "2")(m) }, 400, ohttp.ProblemMalformed},
		"no Content-Length":    {fields("content-length", "+0"), 400, ohttp.ProblemMalformed},
		"hop-by-hop":           {fields("connection", "x-a", "x-a", "1", "upgrade", "h2c", "te", "trailers", "x-b", "2"), 200, ""},
		"large header":         {fields("x", strings.Repeat("x", 70_000)), 413, ohttp.ProblemTooLarge},
		"many fields":          {fields(strings.Split(strings.Repeat("x,", 6000)+"y,z", ",")...), 413, ohttp.ProblemTooLarge},
	} {
		for _, format := range []ohttp.Format{ohttp.Chunked, ohttp.Whole} {
			t.Run(fmt.Sprintf("%s/%v", name, format), func(t *testing.T) {
				got = nil
				plain := message(tc.change).Append(nil)
				var answer *ohttp.Message
				if len(plain) > ohttp.MaxChunk && format == ohttp.Chunked {
					t.Skip("only in several chunks")
				}
				answer = askSealed(t, n, format, plain)
				contentType := ""
				for _, f := range answer.Fields {
					if name, value := f.Strings(); name == "content-type" {
						contentType = value
					} else if name == "date" && tc.typ != ohttp.ProblemDate {
						t.Errorf("Date %q without a reason", value)
					}
				}
				typ := problemType(contentType, answer.Content)
				if answer.Status != tc.status || typ != tc.typ {
					t.Errorf("%d %q, want %d %s", answer.Status, answer.Content, tc.status, tc.typ)
				}
				if (got != nil) != (tc.status == 200) {
					t.Errorf("Next was called: %v", got != nil)
				}
				if name == "hop-by-hop" && fmt.Sprint(got.Header) != "map[X-B:[2]]" {
					t.Errorf("header is %v", got.Header)
				}
				if strings.Contains(name, "Host") && got != nil && (!strings.EqualFold(got.Host, "n.example") || got.Header["Host"] != nil) {
					t.Errorf("Host is %q, header %v", got.Host, got.Header)
				}
			})
		}
	}
}

// The date problem carries the node's clock, so that the client can tell whose is
// wrong.
func TestDateProblemHasDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { t.Error("called") })
		m := message(func(m *ohttp.Message) {
			old := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
			m.Fields = append(m.Fields, ohttp.NewField("date", old))
		})
		answer := askSealed(t, n, ohttp.Chunked, m.Append(nil))
		found := false
		for _, f := range answer.Fields {
			name, value := f.Strings()
			found = found || name == "date" && value == time.Now().UTC().Format(http.TimeFormat)
		}
		if answer.Status != 400 || !found {
			t.Errorf("answer is %+v", answer)
		}
		n.base.CloseIdleConnections()
	})
}

// A message without its end must not reach a Next that has no body to read.
func TestEmptyRequestIsReadToItsEnd(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { t.Error("called") })
	s, err := ohttp.SealRequest(publicKey(t, n.keys, ohttp.X25519), ohttp.Chunked, message(nil).Append(nil), make([]byte, 50), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, b := post(t, n, mediaChunked, bytes.NewReader(s.Bytes[:len(s.Bytes)-17]))
	plain, err := s.OpenResponse(b)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ohttp.ReadMessage(plain, false); err != nil || m.Status != 400 {
		t.Errorf("%+v, %v", m, err)
	}
}

// A client that does not know the padded coding gets a plain body, in whatever
// chunks, and in the whole format an answer that any RFC 9458 client can read.
func TestForeignClient(t *testing.T) {
	long := strings.Repeat("0123456789", 10_000)
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("Accept-Encoding %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Length", "100000")
		io.WriteString(w, long[:100])
		w.(http.Flusher).Flush()
		io.WriteString(w, long[100:])
	})
	for _, format := range []ohttp.Format{ohttp.Chunked, ohttp.Whole} {
		m := askSealed(t, n, format, message(nil).Append(nil))
		if string(m.Content) != long || len(m.Fields) != 1 {
			t.Errorf("%d octets, %v", len(m.Content), m.Fields)
		}
	}
}

// What Next starts and leaves behind may still read the request body.
func TestBodyReadAfterNext(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		returned, read := make(chan struct{}), make(chan error)
		n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
			body := r.Body
			go func() {
				<-returned
				_, err := io.ReadAll(body)
				read <- err
			}()
		})
		pr, pw := io.Pipe()
		resp, err := n.transport(t).RoundTrip(newRequest(t, "POST", io.MultiReader(strings.NewReader(strings.Repeat("x", 40_000)), pr)))
		if err != nil {
			t.Fatal(err)
		}
		io.ReadAll(resp.Body)
		resp.Body.Close()
		close(returned)
		if err := <-read; err == nil {
			t.Error("the body reads as whole")
		}
		pw.Close()
	})
}
