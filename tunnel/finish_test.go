package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/tunnel"
)

// Finish waits for the exchanges that run and for nothing else, whether the node
// ended its status or not.
func TestFinish(t *testing.T) {
	for _, ended := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			release := make(chan struct{})
			mux := http.NewServeMux()
			mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "bye\n")
				http.NewResponseController(w).Flush()
				if !ended {
					<-r.Context().Done()
				}
			})
			mux.HandleFunc("POST /exchange", hold(release))
			l := dial(t, mux, tunnel.ServeConfig{})
			status := send(t, l, get("/status"))
			if !ended {
				if n := l.InFlight(); n != 0 {
					t.Errorf("the status counts as %d exchanges", n)
				}
			}
			res := send(t, l, post(strings.NewReader("prompt")))
			status.Body.Close()
			synctest.Wait()
			if n := l.InFlight(); n != 1 {
				t.Errorf("%d in flight", n)
			}
			at, done := time.Now(), make(chan struct{})
			go func() { l.Finish(context.Background()); close(done) }()
			time.Sleep(time.Minute)
			select {
			case <-done:
				t.Error("an exchange was cut")
			default:
			}
			if _, err := l.RoundTrip(post(strings.NewReader("late"))); !errors.Is(err, tunnel.ErrUnavailable) {
				t.Errorf("a late exchange: %v", err)
			}
			close(release)
			io.Copy(io.Discard, res.Body)
			<-done
			if took := time.Since(at); took > time.Minute+2*time.Second {
				t.Errorf("after %v", took)
			}
			<-l.Done()
		})
	}
	bubble(t, func(t *testing.T) {
		l := dial(t, hold(nil), tunnel.ServeConfig{})
		at := time.Now()
		if l.Finish(context.Background()); time.Since(at) > 0 {
			t.Errorf("without exchanges: after %v", time.Since(at))
		}
	})
	bubble(t, func(t *testing.T) {
		l := dial(t, hold(nil), tunnel.ServeConfig{})
		send(t, l, post(strings.NewReader("prompt")))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		at := time.Now()
		if l.Finish(ctx); time.Since(at) != time.Minute {
			t.Errorf("with a limit: after %v", time.Since(at))
		}
	})
}
