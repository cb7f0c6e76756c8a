package engine_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"token.place/engine"
	"token.place/openai"
)

var streams = map[string]string{
	chat:            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n: wait\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n",
	"/v1/responses": "event: response.created\r\ndata: {\"type\":\"response.created\"}\r\n\r\nevent: response.completed\r\ndata: {\"type\":\"response.completed\"}\r\n\r\n",
	"/v1/messages":  "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
}

func complete(path, media string, stream []byte, pieces int) bool {
	w := engine.NewWatch(path, media)
	for len(stream) > 0 {
		n := min(pieces, len(stream))
		w.See(stream[:n])
		stream = stream[n:]
	}
	return w.Complete()
}

func TestWatchEveryCut(t *testing.T) {
	for path, stream := range streams {
		// The blank line after [DONE] may be missing, nothing else may.
		whole := len(strings.TrimRight(stream, "\r\n"))
		if path != chat {
			whole = len(stream)
			if strings.HasSuffix(stream, "\r\n") {
				whole--
			}
		}
		for cut := range len(stream) + 1 {
			for _, pieces := range []int{1, 7, 1 << 20} {
				if got := complete(path, "text/event-stream", []byte(stream[:cut]), pieces); got != (cut >= whole) {
					t.Errorf("%s cut to %q in pieces of %d: complete is %v", path, stream[:cut], pieces, got)
				}
			}
		}
	}
}

func TestWatchAllocatesNothing(t *testing.T) {
	piece := []byte(strings.Repeat("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", 3))
	for path := range streams {
		w := engine.NewWatch(path, "text/event-stream")
		if n := testing.AllocsPerRun(100, func() { w.See(piece) }); n != 0 {
			t.Errorf("%s: %v allocations per piece", path, n)
		}
	}
}

// FuzzWatchEvents compares the watch with the reader that a client has.
func FuzzWatchEvents(f *testing.F) {
	for path, stream := range streams {
		f.Add(path, []byte(stream), uint8(3))
		f.Add(path, []byte(stream[:len(stream)-5]), uint8(30))
	}
	f.Add(chat, []byte("data: {\"error\":{}}\n\n"), uint8(1))
	f.Add("/v1/responses", []byte("data:{\"type\": \"response.failed\"}\r\rdata: x"), uint8(1))
	f.Fuzz(func(t *testing.T, path string, stream []byte, pieces uint8) {
		got := complete(path, "text/event-stream", stream, int(pieces)+1)
		if other := complete(path, "text/event-stream", stream, len(stream)+1); other != got {
			t.Fatalf("in pieces complete is %v, in one %v", got, other)
		}
		if path != chat || bytes.Contains(stream, []byte("[DONE]")) || bytes.Contains(stream, []byte("error")) {
			return
		}
		if got {
			t.Fatal("complete without an end")
		}
		stream = append(stream, "\n\ndata: [DONE]\n\n"...)
		if !complete(path, "text/event-stream", stream, int(pieces)+1) {
			t.Fatal("not complete with its end")
		}
		for events := openai.NewEvents(bytes.NewReader(stream)); ; {
			event, err := events.Next()
			if err != nil {
				t.Fatalf("the client's reader did not find the end: %v", err)
			}
			if event.Done() {
				return
			}
		}
	})
}

// FuzzWatchJSON checks that JSON is complete as a whole and in no part, but for
// white space.
func FuzzWatchJSON(f *testing.F) {
	f.Add([]byte(odd), uint8(20))
	f.Add([]byte(`{"a":"\\\"}{","b":[[],{}]}`), uint8(9))
	f.Fuzz(func(t *testing.T, body []byte, cut uint8) {
		if !json.Valid(body) || !bytes.ContainsAny(body[:1], "{[") {
			return
		}
		body = bytes.TrimRight(body, " \t\r\n")
		if !complete("/v1/embeddings", "application/json", body, 5) {
			t.Fatal("not complete")
		}
		if n := int(cut) % len(body); complete("/v1/embeddings", "application/json", body[:n], 5) {
			t.Fatalf("complete after %d bytes", n)
		}
	})
}

func BenchmarkWatch(b *testing.B) {
	piece := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" river\"}}]}\n\n")
	w := engine.NewWatch(chat, "text/event-stream")
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	for b.Loop() {
		w.See(piece)
	}
}
