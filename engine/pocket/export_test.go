package pocket

import (
	"strings"
	"testing"
)

// Embedded is the weights in the binary.
func Embedded() []byte { return weights }

// Load reads a model.
func Load(b []byte) (*Model, error) {
	g, err := parseGGUF(b)
	if err != nil {
		return nil, err
	}
	m, err := newModel(g)
	if err != nil {
		return nil, err
	}
	return &Model{m}, nil
}

// Half widens a half-precision number.
func Half(h uint16) float32 { return half(h) }

type Model struct{ m *model }

func (m *Model) Encode(s string) []int { return m.m.vocab.encode(nil, s) }
func (m *Model) Limit() int            { return m.m.limit }
func (m *Model) Vocab() int            { return len(m.m.vocab.pieces) }
func (m *Model) IsControl(id int) bool { return m.m.vocab.pieces[id] == "" }

// Decode returns the bytes the tokens stand for; controls stand for none.
func (m *Model) Decode(ids []int) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(m.m.vocab.pieces[id])
	}
	return b.String()
}

func (m *Model) Session() *Session { return &Session{m.m.session()} }

type Session struct{ s *session }

func (s *Session) Step(token int) []float32 { s.s.step(token, true); return s.s.logits }
func (s *Session) Feed(token int)           { s.s.step(token, false) }
func (s *Session) Reset()                   { s.s.reset() }

func (s *session) blank() bool {
	buffers := [][]float32{s.x, s.h, s.q, s.att, s.gate, s.up, s.scores, s.logits}
	for _, b := range append(append(buffers, s.k...), s.v...) {
		for _, v := range b {
			if v != 0 {
				return false
			}
		}
	}
	return s.pos == 0
}

// Stop is what a text with stop strings shows of pieces, and whether it ended.
func Stop(stops []string, pieces ...string) (shown []string, stopped bool) {
	t := text{stops: stops}
	for _, p := range pieces {
		s, done := t.add(p)
		shown = append(shown, s)
		if done {
			return shown, true
		}
	}
	return append(shown, t.rest()), false
}

// Steps counts the tokens p's sessions have ever been fed. Call it only while
// none of them is in use.
func (p *Pocket) Steps(t testing.TB, slots int) (n int) {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	if len(p.queue.free) != slots || len(p.queue.waiting) != 0 {
		t.Fatalf("%d of %d slots are free, %d wait", len(p.queue.free), slots, len(p.queue.waiting))
	}
	for _, s := range p.queue.free {
		n += s.steps
		if !s.blank() {
			t.Fatal("a free slot remembers an exchange")
		}
	}
	return n
}

// Hold takes a slot and returns what gives it back.
func (p *Pocket) Hold(t testing.TB) (release func()) {
	s, err := p.queue.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func() { p.queue.release(s) }
}

// Waiting is how many requests are in the queue.
func (p *Pocket) Waiting() int {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	return len(p.queue.waiting)
}
