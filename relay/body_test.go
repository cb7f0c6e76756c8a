package relay_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"token.place/relay"
)

// A body that was announced and never comes holds no connection where no body is
// read.
func TestBodiesNobodyReads(t *testing.T) {
	for _, req := range []string{
		"GET /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: 10\r\n\r\n",
		"HEAD /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: 10\r\n\r\n",
		"GET /readyz HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\n\r\n",
		"GET /v1/nodes HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET /v1/models HTTP/1.1\r\nHost: relay\r\nContent-Length: 10\r\n\r\n123",
		"DELETE /nothing HTTP/1.1\r\nHost: relay\r\nContent-Length: 10\r\n\r\n",
	} {
		test(t, relay.Config{}, func(w *world) {
			c := w.raw()
			at := time.Now()
			go io.WriteString(c, req)
			got, err := io.ReadAll(c)
			if took := time.Since(at); err != nil || took > 10*time.Second || !strings.HasPrefix(string(got), "HTTP/1.1 ") {
				t.Errorf("%.30q: %.40q, %v after %v", req, got, err, took)
			}
			c.Close()
		})
	}
	test(t, relay.Config{}, func(w *world) {
		c := w.client("h2")
		pr, pw := io.Pipe()
		if res, body := w.do(c, "GET", "/healthz", nil, pr); res.StatusCode != http.StatusOK || body != "ok\n" {
			t.Errorf("over HTTP/2: %d %q", res.StatusCode, body)
		}
		pw.Close()
		c.CloseIdleConnections()
	})
}
