package pocket

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode/utf8"
)

// Why an answer ended, in the API's words.
const (
	finishStop, finishLength, finishTools = "stop", "length", "tool_calls"
)

// A prompt is what to continue and how.
type prompt struct {
	tokens      []int
	max         int // most tokens to generate, at least 1
	temperature float64
	topP        float64
	seed        uint64
	stops       []string
	tools       []tool // which may be called; none of them unless there are any
	forced      bool   // one of them must be
	said        string // the person's last message, where arguments come from
}

// A delta is the next piece of an answer; exactly one field is set.
type delta struct {
	text      string // whole characters
	call      string // the name of a tool that is being called
	arguments string // more of that call's arguments, JSON
}

// A generation is one answer in the making.
type generation struct {
	ctx  context.Context
	s    *session
	p    prompt
	emit func(delta) error
	used int // tokens generated; the end token is not counted

	rng   *rand.Rand
	order []int // scratch for pick
	probs []float64
}

// generate answers p on s, passing each piece of the answer to emit as soon as
// its token is known. It returns why the answer ended and how many tokens it
// took. It stops within one token of ctx being done or emit failing.
func generate(ctx context.Context, s *session, p prompt, emit func(delta) error) (finish string, used int, err error) {
	p.max = min(p.max, s.m.limit-len(p.tokens))
	g := &generation{ctx: ctx, s: s, p: p, emit: emit, rng: rand.New(rand.NewPCG(p.seed, 0)),
		order: make([]int, len(s.logits)), probs: make([]float64, len(s.logits))}
	for i, id := range p.tokens {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		s.step(id, i == len(p.tokens)-1)
	}
	if p.forced {
		finish, err = g.callTool()
	} else {
		finish, err = g.talk()
	}
	return finish, g.used, err
}

// accept counts a generated token and, unless it is the last there is room
// for, feeds it back.
func (g *generation) accept(id int) error {
	if g.used++; g.full() {
		return nil
	}
	if err := g.ctx.Err(); err != nil {
		return err
	}
	g.s.step(id, true)
	return nil
}

func (g *generation) full() bool { return g.used >= g.p.max }

// talk generates text, until the model ends it, calls a tool, or must stop.
func (g *generation) talk() (string, error) {
	vocab := g.s.m.vocab
	call, callable := vocab.controls[toolCall]
	callable = callable && len(g.p.tools) > 0
	t := &text{stops: g.p.stops}
	for !g.full() {
		for _, id := range vocab.special {
			if id != vocab.eos && !(callable && id == call) {
				g.s.logits[id] = float32(math.Inf(-1))
			}
		}
		id := g.pick(nil)
		if id == vocab.eos {
			return finishStop, g.say(t.rest())
		}
		if id == call && callable {
			if err := g.say(t.rest()); err != nil {
				return "", err
			}
			return g.callTool()
		}
		out, stopped := t.add(vocab.pieces[id])
		if err := g.say(out); err != nil {
			return "", err
		}
		if stopped {
			g.used++
			return finishStop, nil
		}
		if err := g.accept(id); err != nil {
			return "", err
		}
	}
	return finishLength, g.say(t.rest())
}

func (g *generation) say(text string) error {
	if text == "" {
		return nil
	}
	return g.emit(delta{text: text})
}

// pick chooses the next token, among allowed or, with nil, among all.
func (g *generation) pick(allowed []int) int {
	logits := g.s.logits
	if allowed == nil {
		allowed = g.order[:len(logits)]
		for i := range allowed {
			allowed[i] = i
		}
	}
	best := allowed[0]
	for _, id := range allowed {
		if logits[id] > logits[best] {
			best = id
		}
	}
	if g.p.temperature == 0 {
		return best
	}
	var sum float64
	for _, id := range allowed {
		g.probs[id] = math.Exp(float64(logits[id]-logits[best]) / g.p.temperature)
		sum += g.probs[id]
	}
	if g.p.topP < 1 {
		slices.SortStableFunc(allowed, func(a, b int) int {
			switch {
			case g.probs[a] > g.probs[b]:
				return -1
			case g.probs[a] < g.probs[b]:
				return 1
			}
			return 0
		})
		var kept float64
		for i, id := range allowed {
			if kept += g.probs[id]; kept >= g.p.topP*sum {
				allowed, sum = allowed[:i+1], kept
				break
			}
		}
	}
	left := g.rng.Float64() * sum
	for _, id := range allowed {
		if left -= g.probs[id]; left < 0 {
			return id
		}
	}
	return best
}

// A text holds back what must not be shown yet: the beginning of a character
// whose other bytes are to come, and what may turn out to begin a stop string.
type text struct {
	stops []string
	held  string
}

// add returns what can be shown now that more has come. Once a stop string is
// complete it returns what preceded it, and true; nothing follows.
func (t *text) add(more string) (show string, stopped bool) {
	t.held += more
	cut := -1
	for _, s := range t.stops {
		if i := strings.Index(t.held, s); i >= 0 && (cut < 0 || i < cut) {
			cut = i
		}
	}
	if cut >= 0 {
		show, t.held = t.held[:cut], ""
		return strings.ToValidUTF8(show, "\ufffd"), true
	}
	n := len(t.held) - partial(t.held)
	for _, s := range t.stops {
		for k := min(len(s)-1, len(t.held)); k > len(t.held)-n; k-- {
			if strings.HasSuffix(t.held, s[:k]) {
				n = len(t.held) - k
				break
			}
		}
	}
	show, t.held = t.held[:n], t.held[n:]
	return strings.ToValidUTF8(show, "\ufffd"), false
}

// rest returns what is still held when the answer ends.
func (t *text) rest() string {
	s := t.held
	t.held = ""
	return strings.ToValidUTF8(s, "\ufffd")
}

// partial returns how many bytes at the end of s begin a character that is not
// whole yet.
func partial(s string) int {
	for n := 1; n <= min(utf8.UTFMax-1, len(s)); n++ {
		if tail := s[len(s)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRuneInString(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
