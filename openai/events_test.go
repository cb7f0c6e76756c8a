package openai_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"token.place/openai"
)

// readAll returns the events of a stream as "name|data".
func readAll(r io.Reader) (events []string, err error) {
	for e := openai.NewEvents(r); ; {
		event, err := e.Next()
		if err != nil {
			return events, err
		}
		events = append(events, event.Name+"|"+string(event.Data))
	}
}

func TestEvents(t *testing.T) {
	for _, test := range []struct {
		name, stream string
		want         []string
		err          error
	}{
		{"LF", "data: a\n\ndata: [DONE]\n\n", []string{"|a", "|[DONE]"}, io.EOF},
		{"CRLF", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"|a", "|b"}, io.EOF},
		{"CR", "data: a\r\rdata: b\r\r", []string{"|a", "|b"}, io.EOF},
		{"mixed", "data: a\n\r\ndata: b\r\n\rdata: c\r\r\n", []string{"|a", "|b", "|c"}, io.EOF},
		{"lines", "data: a\ndata:  b\ndata:\ndata\n\n", []string{"|a\n b\n\n"}, io.EOF},
		{"no space", "data:{}\n\n", []string{"|{}"}, io.EOF},
		{"comments", ": hello\n\n:\n\ndata: a\n: in between\n\n", []string{"|a"}, io.EOF},
		{"names", "event: x\ndata: a\n\ndata: b\n\nevent: x\n\ndata: c\n\nevent: y\ndata: d\n\n", []string{"x|a", "|b", "|c", "y|d"}, io.EOF},
		{"other fields", "id: 1\nretry: 5\ndate: x\ndata: a\n\n", []string{"|a"}, io.EOF},
		{"empty data", "data\n\n", []string{"|"}, io.EOF},
		{"byte order mark", "\uFEFFdata: a\n\n", []string{"|a"}, io.EOF},
		{"empty", "", nil, io.EOF},
		{"blank lines", "\n\n\n", nil, io.EOF},
		{"cut off in a line", "data: a\n\ndata: b", []string{"|a"}, io.ErrUnexpectedEOF},
		{"cut off before the blank line", "data: a\n\ndata: b\n", []string{"|a"}, io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			readers := map[string]io.Reader{
				"whole": strings.NewReader(test.stream),
				"bytes": iotest.OneByteReader(strings.NewReader(test.stream)),
				"error": iotest.DataErrReader(strings.NewReader(test.stream)),
			}
			for name, r := range readers {
				got, err := readAll(r)
				if strings.Join(got, ",") != strings.Join(test.want, ",") || len(got) != len(test.want) || err != test.err {
					t.Errorf("%s: got %q, %v, want %q, %v", name, got, err, test.want, test.err)
				}
			}
		})
	}
}

func TestEventsBounded(t *testing.T) {
	piece := strings.Repeat("x", 1<<20)
	endless := func(s string) io.Reader { return &repeat{s: s} }
	for name, r := range map[string]io.Reader{
		"line":     io.MultiReader(strings.NewReader("data: "), endless(piece)),
		"comment":  io.MultiReader(strings.NewReader(": "), endless(piece)),
		"lines":    endless("data: " + piece + "\n"),
		"progress": noProgress{},
	} {
		if _, err := readAll(r); !errors.Is(err, openai.ErrTooLong) && err != io.ErrNoProgress {
			t.Errorf("%s: got %v", name, err)
		}
	}
	big := strings.Repeat("x", openai.MaxEvent/2)
	if got, err := readAll(strings.NewReader("data: " + big + "\n\n")); err != io.EOF || len(got) != 1 || got[0] != "|"+big {
		t.Errorf("a large event: got %d events, %v", len(got), err)
	}
	broken := errors.New("broken")
	if got, err := readAll(io.MultiReader(strings.NewReader("data: a\n\ndata"), iotest.ErrReader(broken))); err != broken || len(got) != 1 {
		t.Errorf("got %d events, %v", len(got), err)
	}
}

// repeat reads the same bytes for ever.
type repeat struct {
	s  string
	at int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.s[r.at:])
	r.at = (r.at + n) % len(r.s)
	return n, nil
}

type noProgress struct{}

func (noProgress) Read([]byte) (int, error) { return 0, nil }

// countWrites is a writer that knows how often it was called.
type countWrites struct {
	bytes.Buffer
	writes int
}

func (w *countWrites) Write(p []byte) (int, error) {
	w.writes++
	return w.Buffer.Write(p)
}

func TestWriteEvent(t *testing.T) {
	for data, want := range map[string]string{
		"{}":             "data: {}\n\n",
		"":               "data: \n\n",
		"a\nb\r\nc\rd\n": "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n",
	} {
		var w countWrites
		if err := openai.WriteEvent(&w, []byte(data)); err != nil || w.String() != want || w.writes != 1 {
			t.Errorf("%q: wrote %q in %d writes, %v", data, &w, w.writes, err)
		}
	}
	var w countWrites
	if err := openai.WriteComment(&w, "wait\ndata: x"); err != nil || w.String() != ": wait\n: data: x\n\n" || w.writes != 1 {
		t.Errorf("wrote %q in %d writes, %v", &w, w.writes, err)
	}
	if err := openai.WriteEvent(errWriter{}, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

type errWriter struct{}

func (errWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// FuzzEvents reads any stream, in one piece and in bytes, writes what it found
// and reads that again.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("data: a\n\n: comment\nevent: x\r\ndata: b\r\n\r\ndata: [DONE]\n\n"))
	f.Add([]byte("\uFEFFdata:a\rdata\r\r\ndata"))
	f.Add([]byte("event: x\ndata:  {\"choices\":[]}\nid\n\nretry: 1\n\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		first, err := readAll(bytes.NewReader(stream))
		second, err2 := readAll(iotest.OneByteReader(bytes.NewReader(stream)))
		if err != err2 || strings.Join(first, "\x00") != strings.Join(second, "\x00") {
			t.Fatalf("got %q, %v, and byte for byte %q, %v", first, err, second, err2)
		}
		var written bytes.Buffer
		var want []string
		for _, event := range first {
			_, data, _ := strings.Cut(event, "|")
			if strings.Contains(event[:len(event)-len(data)], "|") {
				openai.WriteEvent(&written, []byte(data))
				openai.WriteComment(&written, data)
				want = append(want, "|"+data)
			}
		}
		again, err := readAll(&written)
		if err != io.EOF || strings.Join(again, "\x00") != strings.Join(want, "\x00") {
			t.Fatalf("wrote %q, read %q, %v", want, again, err)
		}
	})
}

const chunk = `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"pocket","choices":[{"index":0,"delta":{"content":" river"},"finish_reason":null}]}`

func BenchmarkEvents(b *testing.B) {
	stream := strings.Repeat("data: "+chunk+"\n\n", 1000)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		events, n := openai.NewEvents(strings.NewReader(stream)), 0
		for {
			if _, err := events.Next(); err != nil {
				break
			}
			n++
		}
		if n != 1000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkWriteEvent(b *testing.B) {
	data := []byte(chunk)
	b.ReportAllocs()
	for b.Loop() {
		openai.WriteEvent(io.Discard, data)
	}
}
