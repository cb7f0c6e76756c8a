package client_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/client"
)

func TestServerDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, streams(func(w http.ResponseWriter, r *http.Request) {
			event(w, "one")
			select {
			case <-time.After(5 * time.Second):
				event(w, "[DONE]")
			case <-r.Context().Done():
			}
		}), client.ServerConfig{})
		time.AfterFunc(time.Second, l.stop)
		if _, body := l.get("POST", completions, chatStream); body != "data: one\n\ndata: [DONE]\n\n" {
			t.Errorf("got %q", body)
		}
		if _, err := l.do("GET", "/healthz", ""); err == nil {
			t.Error("still serving")
		}
	})
}

// What still runs at the end of the drain is told so and never looks whole.
func TestServerEndsWhatDoesNotEnd(t *testing.T) {
	const stopping = `{"error":{"message":"the local server is stopping: send the request again","type":"server_error","param":null,"code":"shutting_down"}}`
	begin := func(contentType, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", contentType)
			if text != "" {
				io.WriteString(w, text)
				http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
		}
	}
	for name, c := range map[string]struct {
		engine http.HandlerFunc
		body   string
		want   string
		whole  bool
	}{
		"stream":              {begin("text/event-stream", "data: one\n\n"), chatStream, "data: one\n\n", false},
		"stream, in an event": {begin("text/event-stream", "data: one\n\ndata: tw"), chatStream, "data: one\n\ndata: tw", false},
		"stream, not begun":   {begin("text/event-stream", ""), chatStream, "", false},
		"JSON":                {begin("application/json", `{"a":`), chat, `{"a":`, false},
		"JSON, not begun":     {begin("application/json", ""), chat, stopping, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, _ := serve(t, c.engine, client.ServerConfig{})
				start := time.Now()
				time.AfterFunc(time.Second, l.stop)
				resp, err := l.do("POST", completions, c.body)
				if err != nil && strings.HasPrefix(c.want, "{\"a") {
					return // nothing was written before the break
				}
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				body := strings.ReplaceAll(string(b), ": waiting for the node\n\n", "")
				if c.body == chatStream && !strings.HasSuffix(c.want, "tw") {
					c.want += "data: " + stopping + "\n\n"
				}
				if strings.TrimSpace(body) != strings.TrimSpace(c.want) || c.whole != (err == nil) || c.whole != (resp.StatusCode == 503) {
					t.Errorf("got %d %q, %v; want %q", resp.StatusCode, body, err, c.want)
				}
				if d := time.Since(start); d != 31*time.Second {
					t.Errorf("it took %v", d)
				}
				if err := <-l.done; err != nil || time.Since(start) > 32*time.Second {
					t.Errorf("served for %v, %v", time.Since(start), err)
				}
				l.done <- nil
			})
		})
	}
}

// What is not yet a request does not hold the drain.
func TestServerDoesNotWaitForWhatIsNoRequest(t *testing.T) {
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
	for name, c := range map[string]struct {
		sent, want string
		limit      time.Duration
	}{
		"nothing":           {"", "", 3 * time.Second},
		"half a line":       {"POST /v1", "", 3 * time.Second},
		"half a body":       {head + "\r\n{", `"code":"shutting_down"`, 3 * time.Second},
		"refused, no body":  {head + "Origin: null\r\n\r\n", `"code":"origin_not_allowed"`, 3 * time.Second},
		"half a chunk":      {strings.ReplaceAll(head, "Content-Length: 100", "Transfer-Encoding: chunked") + "\r\n5\r\n{", `"code":"shutting_down"`, 3 * time.Second},
		"idle, after one":   {"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "ok\n", time.Second},
		"an upload that is": {head + "\r\n" + chatStream + strings.Repeat(" ", 100-len(chatStream)), "[DONE]", 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNetwork(t)
				n := newNode(t, streams(func(w http.ResponseWriter, _ *http.Request) { time.Sleep(5 * time.Second); event(w, "[DONE]") }), "m")
				l := net.local(client.ServerConfig{Transport: net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))})
				conn, err := net.net.Dial(t.Context(), "tcp", localAddr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				io.WriteString(conn, c.sent)
				synctest.Wait()
				start := time.Now()
				l.stop()
				got, _ := io.ReadAll(conn)
				if !strings.Contains(string(got), c.want) || c.want == "" && len(got) > 0 {
					t.Errorf("got %q", got)
				}
				if err := <-l.done; err != nil || time.Since(start) > c.limit {
					t.Errorf("the drain took %v, %v", time.Since(start), err)
				}
				l.done <- nil
			})
		})
	}
}
