package pocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Bounds on what a GGUF file may claim. They are far above what pocket needs
// and far below what could hurt: everything else is bounded by the file itself.
const (
	maxPairs   = 1024
	maxTensors = 4096
	maxName    = 256
)

// Types of metadata values and of tensors, as the GGUF specification numbers them.
const (
	kindU32, kindI32, kindF32, kindBool, kindString, kindArray, kindU64 = 4, 5, 6, 7, 8, 9, 10

	typeF32, typeF16, typeQ8 = 0, 1, 8
)

var errTruncated = errors.New("truncated")

// A gguf is a parsed GGUF file: metadata and where each tensor's bytes are.
// It aliases the bytes it was parsed from.
type gguf struct {
	meta    map[string]any // uint32, int32, float32, bool, string, uint64, or a slice of one of them
	tensors map[string]tensor
}

// A tensor is a named array; dims has the fastest-varying dimension first.
type tensor struct {
	dims []int
	typ  uint32
	data []byte
}

// cursor reads little-endian values and remembers the first failure, after
// which every read returns zero.
type cursor struct {
	b   []byte
	off int
	err error
}

func (c *cursor) take(n uint64) []byte {
	if c.err == nil && n > uint64(len(c.b)-c.off) {
		c.err = errTruncated
	}
	if c.err != nil {
		return nil
	}
	c.off += int(n)
	return c.b[c.off-int(n) : c.off]
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) str() string { return string(c.take(c.u64())) }

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// list reads n values of at least size bytes each. Checking n against what is
// left first keeps a claimed count from costing memory.
func list[T any](c *cursor, n, size uint64, read func() T) []T {
	if c.err == nil && n > uint64(len(c.b)-c.off)/size {
		c.err = errTruncated
	}
	if c.err != nil {
		return nil
	}
	out := make([]T, 0, n)
	for range n {
		if out = append(out, read()); c.err != nil {
			return nil
		}
	}
	return out
}

func (c *cursor) i32() int32   { return int32(c.u32()) }
func (c *cursor) f32() float32 { return math.Float32frombits(c.u32()) }

func (c *cursor) boolean() bool {
	b := c.take(1)
	if b != nil && b[0] > 1 {
		c.fail("a bool is %d", b[0])
	}
	return b != nil && b[0] == 1
}

func (c *cursor) value(kind uint32) any {
	switch kind {
	case kindU32:
		return c.u32()
	case kindI32:
		return c.i32()
	case kindF32:
		return c.f32()
	case kindBool:
		return c.boolean()
	case kindString:
		return c.str()
	case kindU64:
		return c.u64()
	case kindArray:
		kind, n := c.u32(), c.u64()
		switch kind {
		case kindU32:
			return list(c, n, 4, c.u32)
		case kindI32:
			return list(c, n, 4, c.i32)
		case kindF32:
			return list(c, n, 4, c.f32)
		case kindBool:
			return list(c, n, 1, c.boolean)
		case kindString:
			return list(c, n, 8, c.str)
		case kindU64:
			return list(c, n, 8, c.u64)
		}
		c.fail("array of unsupported type %d", kind)
		return nil
	}
	c.fail("unsupported type %d", kind)
	return nil
}

// parseGGUF reads a GGUF version 3 file. The input may be hostile: every count
// and offset is checked, names are unique, and no byte may follow the tensors.
func parseGGUF(b []byte) (*gguf, error) {
	c := &cursor{b: b}
	if string(c.take(4)) != "GGUF" {
		return nil, errors.New("parse GGUF: not a GGUF file")
	}
	if v := c.u32(); c.err == nil && v != 3 {
		return nil, fmt.Errorf("parse GGUF: version %d, want 3", v)
	}
	tensors, pairs := c.u64(), c.u64()
	if tensors > maxTensors || pairs > maxPairs {
		return nil, fmt.Errorf("parse GGUF: claims %d tensors and %d metadata pairs", tensors, pairs)
	}
	g := &gguf{meta: map[string]any{}, tensors: map[string]tensor{}}
	for range pairs {
		key := c.str()
		v := c.value(c.u32())
		if _, dup := g.meta[key]; dup || key == "" || len(key) > maxName {
			c.fail("a metadata key is empty, too long or repeated")
		}
		if c.err != nil {
			return nil, fmt.Errorf("parse GGUF: metadata: %w", c.err)
		}
		g.meta[key] = v
	}
	if err := g.readTensors(c, int(tensors)); err != nil {
		return nil, fmt.Errorf("parse GGUF: %w", err)
	}
	return g, nil
}

// A place is where a tensor's bytes are, from the beginning of all of them.
type place struct{ off, size uint64 }

// tensor reads what precedes the data of one.
func (c *cursor) tensor() (name string, t tensor, p place) {
	name = c.str()
	dims, count := c.u32(), uint64(1)
	if dims < 1 || dims > 4 {
		c.fail("a tensor has %d dimensions", dims)
		return
	}
	for range dims {
		// The file bounds each dimension and each product: nothing overflows.
		d := c.u64()
		if d == 0 || d > uint64(len(c.b)) || count > uint64(len(c.b)) {
			c.fail("a tensor is larger than the file")
			return
		}
		count *= d
		t.dims = append(t.dims, int(d))
	}
	t.typ, p.off = c.u32(), c.u64()
	switch {
	case count > 1<<40:
		c.fail("a tensor is larger than the file")
	case t.typ == typeF32:
		p.size = 4 * count
	case t.typ == typeF16:
		p.size = 2 * count
	case t.typ == typeQ8 && t.dims[0]%32 == 0:
		p.size = count / 32 * 34
	default:
		c.fail("a tensor has unsupported type %d or shape", t.typ)
	}
	return
}

func (g *gguf) readTensors(c *cursor, n int) error {
	places := map[string]place{}
	for range n {
		name, t, p := c.tensor()
		if _, dup := g.tensors[name]; dup || name == "" || len(name) > maxName {
			c.fail("a tensor name is empty, too long or repeated")
		}
		if c.err != nil {
			return c.err
		}
		g.tensors[name], places[name] = t, p
	}

	align := uint64(32)
	if v, ok := g.meta["general.alignment"]; ok {
		a, _ := v.(uint32)
		if a < 8 || a > 4096 || a&(a-1) != 0 {
			return errors.New("bad general.alignment")
		}
		align = uint64(a)
	}
	pad := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
	start, end := pad(uint64(c.off)), uint64(0)
	if start > uint64(len(c.b)) {
		return errTruncated
	}
	data := c.b[start:]
	for name, p := range places {
		if p.off%align != 0 || p.size > uint64(len(data)) || p.off > uint64(len(data))-p.size {
			return errors.New("a tensor lies outside the file")
		}
		t := g.tensors[name]
		t.data = data[p.off : p.off+p.size]
		g.tensors[name] = t
		end = max(end, p.off+p.size)
	}
	if n := uint64(len(data)); n != end && n != pad(end) {
		return errors.New("bytes follow the last tensor")
	}
	return nil
}

// floats returns the named tensor's values, having checked its shape
// (fastest-varying dimension first).
func (g *gguf) floats(name string, dims ...int) ([]float32, error) {
	t, ok := g.tensors[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q", name)
	}
	n, same := 1, len(t.dims) == len(dims)
	for i := range dims {
		same = same && t.dims[i] == dims[i]
		n *= dims[i]
	}
	if !same {
		return nil, fmt.Errorf("tensor %q has shape %v, want %v", name, t.dims, dims)
	}
	w := make([]float32, n)
	switch t.typ {
	case typeF32:
		for i := range w {
			w[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.data[4*i:]))
		}
	case typeF16:
		for i := range w {
			w[i] = half(binary.LittleEndian.Uint16(t.data[2*i:]))
		}
	case typeQ8: // blocks of 32: a half-precision scale, then 32 signed bytes
		for i := 0; i < n; i += 32 {
			block := t.data[i/32*34:]
			scale := half(binary.LittleEndian.Uint16(block))
			for j := range 32 {
				w[i+j] = scale * float32(int8(block[2+j]))
			}
		}
	}
	return w, nil
}

// half widens an IEEE 754 binary16 value.
func half(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10)&31, uint32(h)&1023
	switch exp {
	case 0:
		f := float32(frac) / (1 << 24)
		return math.Float32frombits(sign | math.Float32bits(f))
	case 31:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
