package relay_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/internal/memnet"
	"token.place/relay"
)

// script is a connection that delivers pieces of given sizes.
type script struct {
	net.Conn
	data   []byte
	splits []byte
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := len(s.data)
	if len(s.splits) > 0 {
		n, s.splits = min(n, 1+int(s.splits[0])), s.splits[1:]
	}
	n = copy(p, s.data[:min(n, len(p))])
	s.data = s.data[n:]
	return n, nil
}

// frame is a request as a parser saw it: the length of its body or -1 for
// chunked, which is what net/http calls it.
type frame struct {
	length int64
	body   int // bytes that arrived
}

// strictly reads data through the strict reader.
func strictly(data, splits []byte) (out []byte, frames []int64, err error) {
	c := relay.Strict(&script{data: data, splits: splits}, func(length int64, chunked bool) {
		if chunked {
			length = -1
		}
		frames = append(frames, length)
	})
	out, err = io.ReadAll(c)
	return out, frames, err
}

// parse reads requests as net/http's server does.
func parse(data []byte) (frames []frame, err error) {
	br := bufio.NewReader(bytes.NewReader(data))
	for {
		if _, err := br.Peek(1); err != nil {
			return frames, nil
		}
		req, err := http.ReadRequest(br)
		if err != nil {
			return frames, err
		}
		if req.Method == "REFUSED" {
			return frames, nil
		}
		n, err := io.Copy(io.Discard, req.Body)
		frames = append(frames, frame{req.ContentLength, int(n)})
		if err != nil {
			return frames, err
		}
	}
}

const refused = "REFUSED /"

const host = "Host: relay\r\n"

func TestStrict(t *testing.T) {
	long := strings.Repeat("x", 31<<10)
	for _, tc := range []struct{ name, in, want string }{
		{"plain", "GET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", ""},
		{"body", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello", ""},
		{"pipelined", "POST / HTTP/1.1\r\n" + host + "content-length:2\r\n\r\nhiGET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"long head", "GET / HTTP/1.1\r\n" + host + "X: " + long + "\r\n\r\n", ""},
		{"Latin-1 value", "GET / HTTP/1.1\r\n" + host + "X: \xe9\t!\r\n\r\n", ""},

		{"too long head", "GET / HTTP/1.1\r\n" + host + "X: " + long + long + "\r\n\r\n", "REFUSED /9 "},
		{"endless head", "GET / HTTP/1.1\r\n" + host + "X: " + long + long, "REFUSED /9 "},
		{"both lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "REFUSED /4 "},
		{"both lengths, other order", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "REFUSED /4 "},
		{"folded", "GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", "REFUSED /3 "},
		{"folded after the first line", "GET / HTTP/1.1\r\n" + " X: a\r\n" + host + "\r\n", "REFUSED /3 "},
		{"coding in 1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "REFUSED /7 "},
		{"length twice", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "REFUSED /5 "},
		{"length list", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\nhello", "REFUSED /5 "},
		{"signed length", "POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello", "REFUSED /5 "},
		{"empty length", "POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n", "REFUSED /5 "},
		{"huge length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 9223372036854775808\r\n\r\n", "REFUSED /5 "},
		{"host twice", "GET / HTTP/1.1\r\n" + host + host + "\r\n", "REFUSED /8 "},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "REFUSED /8 "},
		{"coding twice", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "REFUSED /6 "},
		{"another coding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", "REFUSED /6 "},
		{"coding with a vertical tab", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \vchunked\r\n\r\n", "REFUSED /1 "},
		{"bare LF", "GET / HTTP/1.1\n" + host + "\n", "REFUSED /2 "},
		{"bare LF in a header", "GET / HTTP/1.1\r\nX: a\nContent-Length: 5\r\n" + host + "\r\n", "REFUSED /2 "},
		{"bare CR", "GET / HTTP/1.1\r\n" + host + "X: a\rContent-Length: 5\r\n\r\n", "REFUSED /1 "},
		{"NUL", "GET / HTTP/1.1\r\n" + host + "X: a\x00\r\n\r\n", "REFUSED /1 "},
		{"NUL in the target", "GET /\x00 HTTP/1.1\r\n" + host + "\r\n", "REFUSED /0 "},
		{"space before the colon", "GET / HTTP/1.1\r\n" + host + "Content-Length : 5\r\n\r\n", "REFUSED /1 "},
		{"no name", "GET / HTTP/1.1\r\n" + host + ": 5\r\n\r\n", "REFUSED /1 "},
		{"no colon", "GET / HTTP/1.1\r\n" + host + "hello\r\n\r\n", "REFUSED /1 "},
		{"two spaces", "GET  / HTTP/1.1\r\n" + host + "\r\n", "REFUSED /0 "},
		{"space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", "REFUSED /0 "},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "REFUSED /0 "},
		{"HTTP/0.9", "GET /\r\n\r\n", "REFUSED /0 "},
		{"empty line first", "\r\nGET / HTTP/1.1\r\n" + host + "\r\n", "REFUSED /0 "},
	} {
		for _, size := range []int{0, 1, 7, 4096} {
			t.Run(fmt.Sprintf("%s/%d", tc.name, size), func(t *testing.T) {
				var splits []byte
				if size > 0 {
					splits = bytes.Repeat([]byte{byte(min(size-1, 255))}, len(tc.in))
				}
				out, _, err := strictly([]byte(tc.in), splits)
				if tc.want == "" && (string(out) != tc.in || err != nil) {
					t.Errorf("passed %q, %v", out, err)
				}
				if tc.want != "" && !strings.HasPrefix(string(out), tc.want) {
					t.Errorf("passed %q, want %s…", out, tc.want)
				}
			})
		}
	}
}

// A body that is malformed ends in an error; nothing after it is a request.
func TestStrictBodies(t *testing.T) {
	const head = "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n"
	for name, body := range map[string]string{
		"extension":        "5;a=b\r\nhello\r\n0\r\n\r\n",
		"bare LF":          "5\nhello\r\n0\r\n\r\n",
		"no CR LF after":   "5\r\nhelloGET / HTTP/1.1\r\n",
		"white space":      "5 \r\nhello\r\n0\r\n\r\n",
		"sign":             "+5\r\nhello\r\n0\r\n\r\n",
		"prefix":           "0x5\r\nhello\r\n0\r\n\r\n",
		"empty size":       "\r\nhello\r\n0\r\n\r\n",
		"endless size":     strings.Repeat("0", 10_000),
		"size of 2^60":     "1000000000000000\r\nhello",
		"trailer":          "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
		"bare LF at last":  "5\r\nhello\r\n0\r\n\n",
		"half a CR LF":     "5\r\nhello\r\n0\r\n\rX",
		"LF for the CR LF": "5\r\nhello\n\n0\r\n\r\n",
	} {
		out, frames, err := strictly([]byte(head+body+"GET / HTTP/1.1\r\n"+host+"\r\n"), nil)
		if err == nil || len(frames) != 1 || strings.Contains(string(out), "GET") {
			t.Errorf("%s: passed %q, %d requests, %v", name, out, len(frames), err)
		}
	}
}

func FuzzStrict(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
		"GET / HTTP/1.1\r\nHost: a\r\nTrailer: X\r\nTransfer-Encoding:\tchunked \r\n\r\n0\r\nX: 1\r\n\r\n",
		"GET http://b/ HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost:\r\nContent-Length: 00\r\n\r\n\r\n",
	} {
		f.Add([]byte(s), []byte{})
		f.Add([]byte(s), []byte{0, 0, 3, 255, 1})
	}
	f.Fuzz(func(t *testing.T, data, splits []byte) {
		out, ours, err := strictly(data, splits)
		if i := bytes.Index(out, []byte(refused)); i < 0 && !bytes.HasPrefix(data, out) {
			t.Fatalf("passed what did not come: %q", out)
		}
		theirs, parseErr := parse(out)
		// net/http may refuse more; what both read must be the same, and what
		// net/http reads we must have read.
		for i, their := range theirs {
			if i >= len(ours) || ours[i] != their.length {
				t.Fatalf("request %d: net/http sees a body of %d in\n%q\nwe see %v", i, their.length, out, ours)
			}
		}
		if parseErr == nil && err == nil && len(theirs) != len(ours) {
			t.Fatalf("net/http sees %d requests in\n%q\nwe see %d", len(theirs), out, len(ours))
		}
		// However the bytes are split, the same passes.
		if whole, _, _ := strictly(data, nil); !bytes.Equal(whole, out) {
			t.Fatalf("split, %q passes\nwhole, %q", out, whole)
		}
	})
}

// A read that a deadline interrupts, which is how net/http looks up from one,
// loses nothing.
func TestStrictGoesOnAfterADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		c := relay.Strict(b, func(int64, bool) {})
		defer c.Close()
		first, second := "GET / HTTP/1.1\r\nHo", "st: relay\r\n\r\n"
		io.WriteString(a, first)
		c.SetReadDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 100)
		var timeout net.Error
		if n, err := c.Read(buf); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("half a head: %d, %v", n, err)
		}
		c.SetReadDeadline(time.Time{})
		io.WriteString(a, second)
		if n, err := io.ReadFull(c, buf[:len(first+second)]); string(buf[:n]) != first+second {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	})
}

// Bodies pass at the speed of a copy.
func BenchmarkStrictBody(b *testing.B) {
	data := append([]byte("POST / HTTP/1.1\r\n"+host+"Content-Length: 1048576\r\n\r\n"), make([]byte, 1<<20)...)
	buf := make([]byte, 16<<10)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		c := relay.Strict(&script{data: data}, func(int64, bool) {})
		for {
			if _, err := c.Read(buf); err != nil {
				break
			}
		}
	}
}

func BenchmarkStrictHead(b *testing.B) {
	head := "POST /v1/exchange/abcdefghijklmnopqrstuvwxyz HTTP/1.1\r\nHost: relay.example\r\nUser-Agent: client/1\r\nContent-Type: message/ohttp-chunked-req\r\nContent-Length: 0\r\nAccept-Encoding: identity\r\n\r\n"
	data := []byte(strings.Repeat(head, 1000))
	buf := make([]byte, 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		c := relay.Strict(&script{data: data, splits: bytes.Repeat([]byte{byte(len(head) - 1)}, 1000)}, func(int64, bool) {})
		for range 1000 {
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/head")
}
