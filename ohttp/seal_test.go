package ohttp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"token.place/ohttp"
)

func TestRoundTripAllSuites(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	big := bytes.Repeat([]byte("0123456789abcdef"), ohttp.MaxChunk/16)
	for _, kem := range []ohttp.KEM{ohttp.XWing, ohttp.X25519} {
		for _, suite := range ohttp.Suites() {
			for _, format := range []ohttp.Format{ohttp.Whole, ohttp.Chunked} {
				t.Run(fmt.Sprintf("%#x/%d/%v", uint16(kem), suite.AEAD, format), func(t *testing.T) {
					pieces := [][]byte{[]byte("first"), big, []byte("x"), nil}
					if format == ohttp.Whole {
						pieces = [][]byte{big}
					}
					plain := bytes.Join(pieces, nil)
					s, err := ohttp.SealRequest(publicKey(t, keys, kem).WithSuite(suite), format, pieces...)
					if err != nil {
						t.Fatal(err)
					}
					o, err := ohttp.OpenRequest(keys, format, s.Bytes)
					if err != nil {
						t.Fatal(err)
					}
					if got, err := io.ReadAll(o.Plain); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("request: %d octets, %v", len(got), err)
					}
					nonce := make([]byte, 32)
					if suite.AEAD == 1 {
						nonce = nonce[:16]
					}
					answer, err := o.SealResponse(nonce, pieces...)
					if err != nil {
						t.Fatal(err)
					}
					if got, err := s.OpenResponse(answer); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("answer: %d octets, %v", len(got), err)
					}
				})
			}
		}
	}
}

// chunks cuts a sealed stream into its chunks with their lengths.
func sealEach(pieces ...string) (stream []byte, chunks [][]byte) {
	c := ohttp.FixedCipher()
	for i, p := range pieces {
		chunk := ohttp.AppendChunk(nil, c, []byte(p), i == len(pieces)-1)
		chunks = append(chunks, chunk)
		stream = append(stream, chunk...)
	}
	return stream, chunks
}

func readSealed(stream []byte) ([]byte, error) {
	return io.ReadAll(ohttp.NewSealedReader(bytes.NewReader(stream), ohttp.Chunked))
}

func TestSealedStreamIsWholeOrAnError(t *testing.T) {
	stream, chunks := sealEach("one", "two", "three", "")
	if got, err := readSealed(stream); err != nil || string(got) != "onetwothree" {
		t.Fatalf("%q, %v", got, err)
	}
	join := func(order ...int) (b []byte) {
		for _, i := range order {
			b = append(b, chunks[i]...)
		}
		return b
	}
	for name, bad := range map[string][]byte{
		"reordered":           join(1, 0, 2, 3),
		"duplicated":          join(0, 0, 1, 2, 3),
		"one missing":         join(0, 2, 3),
		"final one first":     join(3, 0, 1, 2),
		"final one twice":     join(0, 1, 2, 3, 3),
		"without final":       join(0, 1, 2),
		"trailing octet":      append(bytes.Clone(stream), 0),
		"nothing":             nil,
		"wrong marking":       append(join(0, 1, 2), chunks[3][1:]...),
		"length 0 in between": append(join(0), 0),
	} {
		got, err := readSealed(bad)
		if err == nil {
			t.Errorf("%s: opens as %q", name, got)
		}
	}
}

func TestSealedStreamTruncatedAnywhere(t *testing.T) {
	stream, _ := sealEach("one", "two", "")
	for n := range stream {
		got, err := readSealed(stream[:n])
		if !errors.Is(err, ohttp.ErrTruncated) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d of %d octets: %q, %v", n, len(stream), got, err)
		}
	}
}

func TestSealedStreamFlippedAnywhere(t *testing.T) {
	stream, _ := sealEach("one", "two", "")
	for i := range stream {
		for bit := range 8 {
			bad := bytes.Clone(stream)
			bad[i] ^= 1 << bit
			if got, err := readSealed(bad); err == nil {
				t.Errorf("octet %d bit %d flipped: opens as %q", i, bit, got)
			}
		}
	}
}

func TestChunkLimits(t *testing.T) {
	most := bytes.Repeat([]byte{'a'}, ohttp.MaxChunk)
	more := append(most, 'b')
	seal := func(pieces ...[]byte) []byte { return ohttp.SealPieces(ohttp.Chunked, pieces...) }
	for name, tc := range map[string]struct {
		stream []byte
		ok     bool
	}{
		"largest chunk":          {seal(most, nil), true},
		"largest final chunk":    {seal(most), true},
		"too large a chunk":      {seal(more, nil), false},
		"too large a last chunk": {seal(more), false},
		"empty chunk":            {seal([]byte("a"), nil, nil), false},
		"empty message":          {seal(nil), true},
		"endless length":         {bytes.Repeat([]byte{0xff}, 100), false},
	} {
		if _, err := readSealed(tc.stream); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWholeLimit(t *testing.T) {
	plain := make([]byte, ohttp.MaxWhole+1)
	read := func(b []byte) error {
		_, err := io.ReadAll(ohttp.NewSealedReader(bytes.NewReader(b), ohttp.Whole))
		return err
	}
	if err := read(ohttp.SealPieces(ohttp.Whole, plain[1:])); err != nil {
		t.Error(err)
	}
	if err := read(ohttp.SealPieces(ohttp.Whole, plain)); err == nil {
		t.Error("a message past the limit is held in memory")
	}
}

// A receiver accepts any split into chunks, and any split into reads.
func TestAnySplit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	plain := make([]byte, 100_000)
	for i := range plain {
		plain[i] = byte(rng.Uint32())
	}
	for range 50 {
		var pieces [][]byte
		for rest := plain; len(rest) > 0; {
			n := min(1+rng.IntN(ohttp.MaxChunk), len(rest))
			if rng.IntN(2) == 0 {
				n = min(1+rng.IntN(5), n)
			}
			if len(pieces) > 200 {
				n = min(ohttp.MaxChunk, len(rest))
			}
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		if rng.IntN(2) == 0 {
			pieces = append(pieces, nil)
		}
		stream := ohttp.SealPieces(ohttp.Chunked, pieces...)
		for _, r := range []io.Reader{
			bytes.NewReader(stream), iotest.HalfReader(bytes.NewReader(stream)), iotest.DataErrReader(bytes.NewReader(stream)),
		} {
			if got, err := io.ReadAll(ohttp.NewSealedReader(r, ohttp.Chunked)); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%d octets, %v", len(got), err)
			}
		}
	}
}

func TestReadErrorsPass(t *testing.T) {
	stream, _ := sealEach("one", "two", "")
	broken := errors.New("broken")
	r := io.MultiReader(bytes.NewReader(stream[:len(stream)-5]), iotest.ErrReader(broken))
	got, err := io.ReadAll(ohttp.NewSealedReader(r, ohttp.Chunked))
	if string(got) != "onetwo" || !errors.Is(err, broken) || !errors.Is(err, ohttp.ErrTruncated) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRequestFlippedAnywhere(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	s, err := ohttp.SealRequest(publicKey(t, keys, ohttp.X25519), ohttp.Chunked, []byte("one"), nil)
	if err != nil {
		t.Fatal(err)
	}
	open := func(b []byte) error {
		o, err := ohttp.OpenRequest(keys, ohttp.Chunked, b)
		if err == nil {
			_, err = io.ReadAll(o.Plain)
		}
		return err
	}
	for i := range s.Bytes {
		bad := bytes.Clone(s.Bytes)
		bad[i] ^= 1
		if open(bad) == nil {
			t.Errorf("octet %d flipped: opens", i)
		}
	}
	for n := range s.Bytes {
		fresh, err := ohttp.SealRequest(publicKey(t, keys, ohttp.X25519), ohttp.Chunked, []byte("one"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if open(fresh.Bytes[:n]) == nil {
			t.Errorf("cut after %d octets: opens", n)
		}
	}
	// One format must not open as the other, though the octets would fit.
	fresh, err := ohttp.SealRequest(publicKey(t, keys, ohttp.X25519), ohttp.Whole, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ohttp.OpenRequest(keys, ohttp.Chunked, fresh.Bytes); err == nil {
		t.Error("a whole request opens as a chunked one")
	}
}
