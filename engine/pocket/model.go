package pocket

import (
	"fmt"
	"math"
)

// A model is a network of the llama architecture: the weights, widened to
// float32 once, and everything else that is the same for every exchange. It is
// never written after newModel and may be shared.
type model struct {
	vocab                           *vocabulary
	dim, heads, head, hidden, limit int // head is the width of one head, limit the context in tokens
	eps                             float32
	embed, norm                     []float32 // embed also makes the logits
	layers                          []layer
	cos, sin                        []float32 // [position][head/2], for rotary embedding
}

type layer struct {
	attnNorm, q, k, v, out, ffnNorm, gate, up, down []float32
}

// newModel checks that g is a model pocket can run, and readies it.
func newModel(g *gguf) (*model, error) {
	if arch, _ := g.meta["general.architecture"].(string); arch != "llama" {
		return nil, fmt.Errorf("read model: architecture is not llama")
	}
	var err error
	number := func(key string, most uint32) int {
		n, ok := g.meta["llama."+key].(uint32)
		if (!ok || n == 0 || n > most) && err == nil {
			err = fmt.Errorf("read model: llama.%s is %d, want 1 to %d", key, n, most)
		}
		return int(n)
	}
	real := func(key string) float64 {
		f, ok := g.meta["llama."+key].(float32)
		if (!ok || !(f > 0) || f > 1e9) && err == nil {
			err = fmt.Errorf("read model: llama.%s is missing or out of range", key)
		}
		return float64(f)
	}
	m := &model{dim: number("embedding_length", 8192), heads: number("attention.head_count", 256), hidden: number("feed_forward_length", 1<<15),
		limit: number("context_length", 1<<12), eps: float32(real("attention.layer_norm_rms_epsilon"))}
	layers, base := number("block_count", 256), real("rope.freq_base")
	kvHeads, rotary := number("attention.head_count_kv", 256), number("rope.dimension_count", 8192)
	if err != nil {
		return nil, err
	}
	if m.head = m.dim / m.heads; m.head*m.heads != m.dim || m.head%4 != 0 || m.hidden%4 != 0 || kvHeads != m.heads || rotary != m.head {
		return nil, fmt.Errorf("read model: %d wide with %d heads, %d for keys, and %d rotary is not supported", m.dim, m.heads, kvHeads, rotary)
	}
	if m.vocab, err = newVocabulary(g); err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	if err := m.readWeights(g, layers); err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	half := m.head / 2
	m.cos, m.sin = make([]float32, m.limit*half), make([]float32, m.limit*half)
	for i := range m.cos {
		angle := float64(i/half) / math.Pow(base, float64(i%half)/float64(half))
		sin, cos := math.Sincos(angle)
		m.cos[i], m.sin[i] = float32(cos), float32(sin)
	}
	return m, nil
}

func (m *model) readWeights(g *gguf, layers int) error {
	var err error
	read := func(name string, dims ...int) []float32 {
		if err != nil {
			return nil
		}
		var w []float32
		w, err = g.floats(name+".weight", dims...)
		return w
	}
	m.embed = read("token_embd", m.dim, len(m.vocab.pieces))
	m.norm = read("output_norm", m.dim)
	for i := range layers {
		b := fmt.Sprintf("blk.%d.", i)
		m.layers = append(m.layers, layer{
			attnNorm: read(b+"attn_norm", m.dim),
			q:        read(b+"attn_q", m.dim, m.dim),
			k:        read(b+"attn_k", m.dim, m.dim),
			v:        read(b+"attn_v", m.dim, m.dim),
			out:      read(b+"attn_output", m.dim, m.dim),
			ffnNorm:  read(b+"ffn_norm", m.dim),
			gate:     read(b+"ffn_gate", m.dim, m.hidden),
			up:       read(b+"ffn_up", m.dim, m.hidden),
			down:     read(b+"ffn_down", m.hidden, m.dim),
		})
		if err != nil {
			return err
		}
	}
	return err
}

// A session is one exchange's place in the model: the keys and values of the
// tokens fed so far, and scratch space, so that a step allocates nothing. It
// serves one exchange at a time and is reset between exchanges.
type session struct {
	m                      *model
	pos                    int
	k, v                   [][]float32 // by layer: [head][position][head width]
	x, h, q, att, gate, up []float32
	scores, logits         []float32
	steps                  int // of the session's whole life, for tests
}

func (m *model) session() *session {
	s := &session{m: m}
	for range m.layers {
		s.k = append(s.k, make([]float32, m.limit*m.dim))
		s.v = append(s.v, make([]float32, m.limit*m.dim))
	}
	s.x, s.h, s.q, s.att = make([]float32, m.dim), make([]float32, m.dim), make([]float32, m.dim), make([]float32, m.dim)
	s.gate, s.up = make([]float32, m.hidden), make([]float32, m.hidden)
	s.scores, s.logits = make([]float32, m.limit), make([]float32, len(m.vocab.pieces))
	return s
}

// reset forgets the exchange: nothing of it stays in memory.
func (s *session) reset() {
	for l := range s.k {
		for o := 0; o < len(s.k[l]); o += s.m.limit * s.m.head {
			clear(s.k[l][o : o+s.pos*s.m.head])
			clear(s.v[l][o : o+s.pos*s.m.head])
		}
	}
	for _, b := range [][]float32{s.x, s.h, s.q, s.att, s.gate, s.up, s.scores, s.logits} {
		clear(b)
	}
	s.pos = 0
}

// step feeds one token. With last it also computes, in s.logits, how likely
// each token is to come next. The caller keeps s.pos below the model's limit.
func (s *session) step(token int, last bool) {
	m := s.m
	copy(s.x, m.embed[token*m.dim:])
	for i := range m.layers {
		l := &m.layers[i]
		rms(s.h, s.x, l.attnNorm, m.eps)
		s.attend(i, l)
		rms(s.h, s.x, l.ffnNorm, m.eps)
		multiply(s.gate, l.gate, s.h)
		multiply(s.up, l.up, s.h)
		for j, g := range s.gate {
			s.gate[j] = g / (1 + float32(math.Exp(float64(-g)))) * s.up[j]
		}
		multiply(s.h, l.down, s.gate)
		for j, h := range s.h {
			s.x[j] += h
		}
	}
	s.pos++
	s.steps++
	if last {
		rms(s.h, s.x, m.norm, m.eps)
		multiply(s.logits, m.embed, s.h)
	}
}

// attend adds to s.x what layer number n makes of s.h and of what came before.
func (s *session) attend(n int, l *layer) {
	m, width := s.m, s.m.head
	multiply(s.q, l.q, s.h)
	multiply(s.att, l.k, s.h)
	s.rotate(s.q)
	s.rotate(s.att)
	at, stride := s.pos*width, m.limit*width
	for i := range m.heads {
		copy(s.k[n][i*stride+at:], s.att[i*width:(i+1)*width])
	}
	multiply(s.att, l.v, s.h)
	for i := range m.heads {
		copy(s.v[n][i*stride+at:], s.att[i*width:(i+1)*width])
	}
	clear(s.att)
	scale := float32(1 / math.Sqrt(float64(width)))
	scores := s.scores[:s.pos+1]
	for i := range m.heads {
		multiply(scores, s.k[n][i*stride:i*stride+at+width], s.q[i*width:(i+1)*width])
		top := float32(math.Inf(-1))
		for t, v := range scores {
			scores[t] = v * scale
			top = max(top, scores[t])
		}
		var sum float32
		for t, v := range scores {
			scores[t] = float32(math.Exp(float64(v - top)))
			sum += scores[t]
		}
		for t := range scores {
			scores[t] /= sum
		}
		mix(s.att[i*width:(i+1)*width], scores, s.v[n][i*stride:])
	}
	multiply(s.h, l.out, s.att)
	for j, h := range s.h {
		s.x[j] += h
	}
}

// rotate turns each pair of values by its angle at the session's position.
func (s *session) rotate(x []float32) {
	half := s.m.head / 2
	cos, sin := s.m.cos[s.pos*half:][:half], s.m.sin[s.pos*half:][:half]
	for o := 0; o < len(x); o += 2 * half {
		for i := range cos {
			a, b := x[o+2*i], x[o+2*i+1]
			x[o+2*i], x[o+2*i+1] = a*cos[i]-b*sin[i], a*sin[i]+b*cos[i]
		}
	}
}

func rms(out, x, w []float32, eps float32) {
	var sum float32
	for _, v := range x {
		sum += v * v
	}
	scale := float32(1 / math.Sqrt(float64(sum/float32(len(x))+eps)))
	for i, v := range x {
		out[i] = v * scale * w[i]
	}
}

// multiply sets out to the matrix w, of len(out) rows, times x. Four rows at a
// time share each load of x, and their sums do not wait for one another. The race
// detector leaves this function and mix alone: it would make them thirty times
// slower in the tests of everyone who answers with pocket, and it sees the callers.
//
//go:norace
func multiply(out, w, x []float32) {
	n, i := len(x), 0
	for ; i+4 <= len(out); i += 4 {
		a, b, c, d := w[i*n:][:n], w[(i+1)*n:][:n], w[(i+2)*n:][:n], w[(i+3)*n:][:n]
		var sa, sb, sc, sd float32
		for j, v := range x {
			sa += a[j] * v
			sb += b[j] * v
			sc += c[j] * v
			sd += d[j] * v
		}
		out[i], out[i+1], out[i+2], out[i+3] = sa, sb, sc, sd
	}
	for ; i < len(out); i++ {
		var sum float32
		for j, v := range w[i*n:][:n] {
			sum += v * x[j]
		}
		out[i] = sum
	}
}

// mix adds to out each row of the matrix v as often as weights says.
//
//go:norace
func mix(out, weights, v []float32) {
	n, t := len(out), 0
	for ; t+4 <= len(weights); t += 4 {
		a, b, c, d := v[t*n:][:n], v[(t+1)*n:][:n], v[(t+2)*n:][:n], v[(t+3)*n:][:n]
		wa, wb, wc, wd := weights[t], weights[t+1], weights[t+2], weights[t+3]
		for j := range out {
			out[j] += wa*a[j] + wb*b[j] + wc*c[j] + wd*d[j]
		}
	}
	for ; t < len(weights); t++ {
		for j, x := range v[t*n:][:n] {
			out[j] += weights[t] * x
		}
	}
}
