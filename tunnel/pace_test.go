package tunnel_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"token.place/tunnel"
)

// A body that stalls or drips fails at the node; one that is slow does not, and
// neither does one that waits for the node.
func TestBodyPace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type result struct {
			n    int64
			err  error
			took time.Duration
		}
		got := make(chan result, 1)
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			at := time.Now()
			if r.URL.Path == "/slow-node" {
				io.CopyN(io.Discard, r.Body, 1<<10)
				time.Sleep(time.Hour)
			}
			n, err := io.Copy(io.Discard, r.Body)
			got <- result{n, err, time.Since(at)}
		}), tunnel.ServeConfig{})
		upload := func(path string, pieces, size int, pause time.Duration) result {
			pr, pw := io.Pipe()
			req, _ := http.NewRequest("POST", "http://node"+path, pr)
			go func() {
				for range pieces {
					pw.Write(make([]byte, size))
					time.Sleep(pause)
				}
				pw.Close()
			}()
			res, err := l.RoundTrip(req)
			if err == nil {
				res.Body.Close()
			}
			pr.Close()
			return <-got
		}
		if r := upload("/exchange", 1, 20<<10, time.Hour); !errors.Is(r.err, os.ErrDeadlineExceeded) || r.took != time.Minute {
			t.Errorf("stalled: %+v", r)
		}
		if r := upload("/exchange", 1000, 1, time.Second); !errors.Is(r.err, os.ErrDeadlineExceeded) || r.took != time.Minute {
			t.Errorf("dripping: %+v", r)
		}
		if r := upload("/exchange", 100, 4<<10, time.Second); r.err != nil || r.n != 400<<10 {
			t.Errorf("slow but steady: %+v", r)
		}
		if r := upload("/slow-node", 40, 1<<10, 0); r.err != nil || r.n != 39<<10 {
			t.Errorf("a node that takes its time: %+v", r)
		}
	})
}

// Whoever still reads a body when its handler has returned does no harm.
func TestBodyReadTooLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ended := make(chan error, 1)
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body := r.Body
			go func() {
				var err error
				for err == nil {
					_, err = body.Read(make([]byte, 100))
					time.Sleep(time.Minute)
				}
				ended <- err
			}()
			time.Sleep(time.Second)
		}), tunnel.ServeConfig{})
		pr, pw := io.Pipe()
		go pw.Write(make([]byte, 1000))
		send(t, l, post(pr)).Body.Close()
		<-ended
		pw.Close()
	})
}
