package pocket_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"token.place/engine/pocket"
)

// A file makes GGUF files, right and wrong.
type file struct {
	meta    []pair
	tensors []tensor
	trailer []byte
	counts  *[2]uint64 // claimed instead of the true ones
}

type pair struct {
	key   string
	kind  uint32
	value []byte
}

type tensor struct {
	name string
	dims []uint64
	kind uint32
	off  uint64 // added to where it is
	data []byte
}

func le(vs ...any) []byte {
	var b bytes.Buffer
	for _, v := range vs {
		if s, ok := v.(string); ok {
			binary.Write(&b, binary.LittleEndian, uint64(len(s)))
			b.WriteString(s)
		} else if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func (f *file) set(key string, kind uint32, vs ...any) {
	p := pair{key, kind, le(vs...)}
	for i := range f.meta {
		if f.meta[i].key == key {
			f.meta[i] = p
			return
		}
	}
	f.meta = append(f.meta, p)
}

func (f *file) bytes() []byte {
	counts := [2]uint64{uint64(len(f.tensors)), uint64(len(f.meta))}
	if f.counts != nil {
		counts = *f.counts
	}
	var b, data bytes.Buffer
	b.WriteString("GGUF")
	b.Write(le(uint32(3), counts))
	for _, p := range f.meta {
		b.Write(le(p.key, p.kind))
		b.Write(p.value)
	}
	for _, t := range f.tensors {
		b.Write(le(t.name, uint32(len(t.dims)), t.dims, t.kind, uint64(data.Len())+t.off))
		data.Write(t.data)
		data.Write(make([]byte, -data.Len()&31))
	}
	b.Write(make([]byte, -b.Len()&31))
	b.Write(data.Bytes())
	b.Write(f.trailer)
	return b.Bytes()
}

// tiny is a whole model, 32 wide with one layer, in all three kinds of tensor.
func tiny() *file {
	f := &file{}
	f.set("general.architecture", 8, "llama")
	for k, v := range map[string]uint32{"context_length": 8, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
		"attention.head_count": 8, "attention.head_count_kv": 8, "rope.dimension_count": 4} {
		f.set("llama."+k, 4, v)
	}
	f.set("llama.rope.freq_base", 6, float32(10000))
	f.set("llama.attention.layer_norm_rms_epsilon", 6, float32(1e-5))
	var tokens, scores, types bytes.Buffer
	add := func(s string, score float32, kind int32) {
		tokens.Write(le(s))
		scores.Write(le(score))
		types.Write(le(kind))
	}
	add("<unk>", 0, 2)
	add("<s>", 0, 3)
	add("</s>", 0, 3)
	for b := range 256 {
		add(fmt.Sprintf("<0x%02X>", b), 0, 6)
	}
	add("ab", -1, 1)
	add("a", -2, 1)
	add("b", -3, 1)
	const n = 3 + 256 + 3
	f.set("tokenizer.ggml.model", 8, "llama")
	f.set("tokenizer.ggml.tokens", 9, uint32(8), uint64(n), tokens.Bytes())
	f.set("tokenizer.ggml.scores", 9, uint32(6), uint64(n), scores.Bytes())
	f.set("tokenizer.ggml.token_type", 9, uint32(5), uint64(n), types.Bytes())
	f.set("tokenizer.ggml.bos_token_id", 4, uint32(1))
	f.set("tokenizer.ggml.eos_token_id", 4, uint32(2))
	weight := func(name string, kind uint32, dims ...uint64) {
		n := uint64(1)
		for _, d := range dims {
			n *= d
		}
		size := map[uint32]uint64{0: 4 * n, 1: 2 * n, 8: n / 32 * 34}[kind]
		f.tensors = append(f.tensors, tensor{name + ".weight", dims, kind, 0, make([]byte, size)})
	}
	weight("token_embd", 8, 32, n)
	weight("output_norm", 0, 32)
	for i, name := range []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"} {
		weight("blk.0."+name, uint32([]int{8, 1}[i%2]), 32, 32)
	}
	weight("blk.0.attn_norm", 0, 32)
	weight("blk.0.ffn_norm", 0, 32)
	return f
}

func TestTiny(t *testing.T) {
	f := tiny()
	copy(f.tensors[0].data[34*3:], le(uint16(0x3c00), []int8{1, -2})) // token 3, in a scale of 1
	for i := range 32 {
		copy(f.tensors[1].data[4*i:], le(float32(1))) // output_norm
	}
	m, err := pocket.Load(f.bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(m.Encode("abba\x00")); got != "[259 261 260 3]" {
		t.Errorf("encoded as %s", got)
	}
	// The layers add nothing, so what comes out is the embedding, normalised.
	logits, want := m.Session().Step(3), 5/math.Sqrt(5./32+1e-5)
	if math.Abs(float64(logits[3])-want) > 1e-4 || logits[4] != 0 {
		t.Errorf("logits %v and %v, want %v and 0", logits[3], logits[4], want)
	}
	for h, want := range map[uint16]float64{0: 0, 0x3c00: 1, 0xc000: -2, 1: 1. / (1 << 24), 0x83ff: -1023. / (1 << 24), 0x0400: 1. / (1 << 14), 0x7bff: 65504, 0xfc00: math.Inf(-1)} {
		if got := float64(pocket.Half(h)); got != want {
			t.Errorf("half precision %#x is %v, want %v", h, got, want)
		}
	}
}

// first changes the named tensor.
func first(name string, change func(*tensor)) func(*file) {
	return func(f *file) {
		for i := range f.tensors {
			if f.tensors[i].name == name+".weight" {
				change(&f.tensors[i])
			}
		}
	}
}

// malformed is what may be wrong with a file, and what the error says.
var malformed = map[string]struct {
	change func(*file)
	want   string
}{
	"huge counts":        {func(f *file) { f.counts = &[2]uint64{1 << 60, 1} }, "claims"},
	"more tensors":       {func(f *file) { f.counts = &[2]uint64{4000, uint64(len(f.meta))} }, "parse GGUF"},
	"more metadata":      {func(f *file) { f.counts = &[2]uint64{0, 1000} }, "metadata"},
	"no metadata":        {func(f *file) { f.meta = nil }, "architecture"},
	"repeated key":       {func(f *file) { f.meta = append(f.meta, f.meta[0]) }, "repeated"},
	"repeated tensor":    {func(f *file) { f.tensors = append(f.tensors, f.tensors[0]) }, "repeated"},
	"huge array":         {func(f *file) { f.set("x", 9, uint32(4), uint64(1)<<62) }, "truncated"},
	"huge string array":  {func(f *file) { f.set("x", 9, uint32(8), uint64(1)<<20) }, "truncated"},
	"huge string":        {func(f *file) { f.set("x", 8, uint64(math.MaxUint64)) }, "truncated"},
	"nested array":       {func(f *file) { f.set("x", 9, uint32(9), uint64(1), uint32(4), uint64(0)) }, "array of unsupported type"},
	"unknown kind":       {func(f *file) { f.set("x", 99) }, "unsupported type 99"},
	"bad bool":           {func(f *file) { f.set("x", 7, uint8(2)) }, "bool"},
	"bad alignment":      {func(f *file) { f.set("general.alignment", 4, uint32(48)) }, "alignment"},
	"zero alignment":     {func(f *file) { f.set("general.alignment", 4, uint32(0)) }, "alignment"},
	"overflowing tensor": {first("token_embd", func(t *tensor) { t.dims = []uint64{1 << 33, 1 << 33} }), "larger than the file"},
	"product overflow":   {first("token_embd", func(t *tensor) { t.dims = []uint64{5000, 5000, 5000, 5000} }), "larger than the file"},
	"zero dimension":     {first("token_embd", func(t *tensor) { t.dims[1] = 0 }), "larger than the file"},
	"many dimensions":    {first("token_embd", func(t *tensor) { t.dims = make([]uint64, 9) }), "dimensions"},
	"tensor kind":        {first("token_embd", func(t *tensor) { t.kind = 12 }), "unsupported type 12"},
	"half a block":       {first("token_embd", func(t *tensor) { t.dims[0] = 16 }), "shape"},
	"outside":            {first("token_embd", func(t *tensor) { t.off = 1 << 20 }), "outside the file"},
	"offset overflow":    {first("token_embd", func(t *tensor) { t.off = math.MaxUint64 - 31 }), "outside the file"},
	"unaligned":          {first("token_embd", func(t *tensor) { t.off = 1 }), "outside the file"},
	"wrong shape":        {first("blk.0.ffn_up", func(t *tensor) { t.dims = []uint64{32, 31} }), "shape"},
	"missing tensor":     {first("blk.0.ffn_up", func(t *tensor) { t.name = "x" }), "no tensor"},
	"trailing bytes":     {func(f *file) { f.trailer = make([]byte, 33) }, "follow"},
	"architecture":       {func(f *file) { f.set("general.architecture", 8, "gpt2") }, "architecture"},
	"huge context":       {func(f *file) { f.set("llama.context_length", 4, uint32(1<<31)) }, "context_length"},
	"huge layers":        {func(f *file) { f.set("llama.block_count", 4, uint32(1<<31)) }, "block_count"},
	"wrong kind":         {func(f *file) { f.set("llama.block_count", 8, "1") }, "block_count"},
	"heads":              {func(f *file) { f.set("llama.attention.head_count", 4, uint32(5)) }, "not supported"},
	"epsilon":            {func(f *file) { f.set("llama.attention.layer_norm_rms_epsilon", 6, float32(math.NaN())) }, "epsilon"},
	"grouped heads":      {func(f *file) { f.set("llama.attention.head_count_kv", 4, uint32(2)) }, "not supported"},
	"fewer scores":       {func(f *file) { f.set("tokenizer.ggml.scores", 9, uint32(6), uint64(1), float32(0)) }, "scores"},
	"bos":                {func(f *file) { f.set("tokenizer.ggml.bos_token_id", 4, uint32(1<<30)) }, "begin or end"},
	"tokenizer":          {func(f *file) { f.set("tokenizer.ggml.model", 8, "gpt2") }, "llama kind"},
	"no vocabulary":      {func(f *file) { f.set("tokenizer.ggml.tokens", 4, uint32(0)) }, "vocabulary has 0 tokens"},
}

func TestMalformed(t *testing.T) {
	for name, c := range malformed {
		f := tiny()
		c.change(f)
		if _, err := pocket.Load(f.bytes()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	whole := tiny().bytes()
	for n := range len(whole) {
		if _, err := pocket.Load(whole[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes were taken for a model", n, len(whole))
		}
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add(tiny().bytes())
	for _, c := range malformed {
		g := tiny()
		c.change(g)
		f.Add(g.bytes())
	}
	f.Add([]byte("GGUF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := pocket.Load(b)
		if err != nil {
			return
		}
		s := m.Session()
		for _, id := range append(m.Encode("ab \u2581é"), 0, m.Vocab()-1)[:min(4, m.Limit())] {
			s.Step(id)
		}
	})
}
