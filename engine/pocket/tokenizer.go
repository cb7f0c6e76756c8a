package pocket

import (
	"container/heap"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Kinds of vocabulary entries, as tokenizer.ggml.token_type numbers them.
const (
	tokenNormal, tokenUnknown, tokenControl, tokenUser, tokenByte = 1, 2, 3, 4, 6

	maxVocab = 1 << 18
	space    = "\u2581" // stands for a blank inside the vocabulary
)

// A vocabulary turns text into tokens the way sentencepiece's BPE does, and
// back. Text never becomes a control token, whatever it spells: those are only
// reachable by name, through control.
type vocabulary struct {
	bos, eos int
	pieces   []string       // by token: the bytes it stands for, empty for controls
	text     map[string]int // normal tokens by their spelling in the vocabulary
	spelt    map[string]int // and by the bytes they stand for
	scores   []float32
	bytes    [256]int       // fallback for what the vocabulary cannot spell
	controls map[string]int // <|user|>, </s>, <tool_call>, ...
	special  []int          // the tokens of controls, and unknown: never sampled unless asked for
	longest  int            // bytes of the longest piece
}

func newVocabulary(g *gguf) (*vocabulary, error) {
	tokens, _ := g.meta["tokenizer.ggml.tokens"].([]string)
	scores, _ := g.meta["tokenizer.ggml.scores"].([]float32)
	types, _ := g.meta["tokenizer.ggml.token_type"].([]int32)
	if len(tokens) == 0 || len(tokens) > maxVocab || len(scores) != len(tokens) || len(types) != len(tokens) {
		return nil, fmt.Errorf("vocabulary has %d tokens, %d scores and %d types", len(tokens), len(scores), len(types))
	}
	if model, _ := g.meta["tokenizer.ggml.model"].(string); model != "llama" {
		return nil, errors.New("tokenizer is not of the llama kind")
	}
	if prefix, _ := g.meta["tokenizer.ggml.add_space_prefix"].(bool); prefix {
		return nil, errors.New("tokenizer wants a space prefix, which is not supported")
	}
	v := &vocabulary{text: map[string]int{}, spelt: map[string]int{}, controls: map[string]int{}, scores: scores, pieces: make([]string, len(tokens))}
	for i := range v.bytes {
		v.bytes[i] = -1
	}
	for id, t := range tokens {
		if t == "" || len(t) > maxName {
			return nil, fmt.Errorf("token %d has %d bytes", id, len(t))
		}
		if err := v.add(id, t, types[id]); err != nil {
			return nil, err
		}
	}
	for b, id := range v.bytes {
		if id < 0 {
			return nil, fmt.Errorf("vocabulary has no token for byte %#x", b)
		}
	}
	bos, ok1 := g.meta["tokenizer.ggml.bos_token_id"].(uint32)
	eos, ok2 := g.meta["tokenizer.ggml.eos_token_id"].(uint32)
	if !ok1 || !ok2 || bos >= uint32(len(tokens)) || eos >= uint32(len(tokens)) {
		return nil, errors.New("vocabulary has no begin or end token")
	}
	v.bos, v.eos = int(bos), int(eos)
	return v, nil
}

func (v *vocabulary) add(id int, t string, kind int32) error {
	dup := false
	switch kind {
	case tokenNormal:
		_, dup = v.text[t]
		v.text[t] = id
		v.pieces[id] = strings.ReplaceAll(t, space, " ")
		v.spelt[v.pieces[id]] = id
		v.longest = max(v.longest, len(v.pieces[id]))
		if math.IsNaN(float64(v.scores[id])) {
			return fmt.Errorf("token %d has no score", id)
		}
	case tokenByte:
		var b byte
		if n, _ := fmt.Sscanf(t, "<0x%02X>", &b); n != 1 || t != fmt.Sprintf("<0x%02X>", b) {
			return fmt.Errorf("token %d is not a byte", id)
		}
		dup = v.bytes[b] >= 0
		v.bytes[b], v.pieces[id] = id, string([]byte{b})
		v.longest = max(v.longest, 1)
	case tokenControl, tokenUser, tokenUnknown:
		_, dup = v.controls[t]
		v.controls[t] = id
		v.special = append(v.special, id)
	default:
		return fmt.Errorf("token %d has unsupported type %d", id, kind)
	}
	if dup {
		return fmt.Errorf("token %d repeats another", id)
	}
	return nil
}

// A symbol is a run of text on its way to becoming a token; symbols form a
// list that shrinks as neighbours merge.
type symbol struct {
	text       string // "" once merged into its left neighbour
	raw        bool   // never merges
	prev, next int
}

// A pair is two neighbours the vocabulary has a token for.
type pair struct {
	score       float32
	left, right int
	size        int // of both together: tells whether the pair still stands
}

// pairs is a heap: best score first, then leftmost.
type pairs []pair

func (p pairs) Len() int { return len(p) }
func (p pairs) Less(i, j int) bool {
	return p[i].score > p[j].score || p[i].score == p[j].score && p[i].left < p[j].left
}
func (p pairs) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *pairs) Push(x any)   { *p = append(*p, x.(pair)) }
func (p *pairs) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}

// encode appends the tokens of text to out. Any bytes are accepted, and
// decoding the tokens gives exactly the same bytes back.
func (v *vocabulary) encode(out []int, text string) []int {
	syms := make([]symbol, 0, len(text))
	for off := 0; off < len(text); {
		_, n := utf8.DecodeRuneInString(text[off:])
		t := text[off : off+n]
		// A literal U+2581 is spelt in bytes, or it would come back as a blank.
		raw := t == space
		if t == " " {
			t = space
		}
		syms = append(syms, symbol{t, raw, len(syms) - 1, len(syms) + 1})
		off += n
	}
	v.merge(syms)
	for _, s := range syms {
		if s.text == "" {
			continue
		}
		id, ok := v.text[s.text]
		if ok && !s.raw {
			out = append(out, id)
			continue
		}
		t := s.text
		if t == space && !s.raw {
			t = " "
		}
		for i := range len(t) {
			out = append(out, v.bytes[t[i]])
		}
	}
	return out
}

func (v *vocabulary) merge(syms []symbol) {
	var todo pairs
	try := func(l, r int) {
		if l < 0 || r >= len(syms) || syms[l].raw || syms[r].raw {
			return
		}
		if id, ok := v.text[syms[l].text+syms[r].text]; ok {
			heap.Push(&todo, pair{v.scores[id], l, r, len(syms[l].text) + len(syms[r].text)})
		}
	}
	for i := range syms {
		try(i, i+1)
	}
	for len(todo) > 0 {
		p := heap.Pop(&todo).(pair)
		l, r := &syms[p.left], &syms[p.right]
		if l.text == "" || r.text == "" || len(l.text)+len(r.text) != p.size {
			continue // one of them has merged with another since
		}
		l.text, r.text = l.text+r.text, ""
		if l.next = r.next; l.next < len(syms) {
			syms[l.next].prev = p.left
		}
		try(l.prev, p.left)
		try(p.left, l.next)
	}
}

// prefixes appends to out the tokens that text can begin with.
func (v *vocabulary) prefixes(out []int, text string) []int {
	had := len(out)
	for n := 1; n <= min(v.longest, len(text)); n++ {
		if id, ok := v.spelt[text[:n]]; ok {
			out = append(out, id)
		}
	}
	if len(out) == had {
		out = append(out, v.bytes[text[0]])
	}
	return out
}
