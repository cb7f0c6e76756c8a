package ohttp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Padding chooses the sizes that anyone on the way can see. Zero fields take
// DefaultPadding's values, so that forgetting them hides more, not less.
type Padding struct {
	// Request lists, in ascending order, the plaintext sizes of sealed requests.
	// A request is padded to the next one; past the last, to a multiple of it.
	// []int{1} pads nothing.
	Request []int
	// ResponseFrame is the unit of a padded answer: the plaintext of each of its
	// sealed chunks is a multiple of it. At most 8192; 1 pads nothing.
	ResponseFrame int
}

// DefaultPadding is the one place where sizes are chosen; spec/exchange.md says
// what they cost. Requests: 4 KiB doubling to 64 KiB, so that nearly all chats
// share five sizes, then four steps per doubling up to 64 MiB, which costs at most
// a quarter. Answers: frames of 512 octets, which one event of a chat stream
// nearly always fits.
func DefaultPadding() Padding {
	p := Padding{ResponseFrame: 512}
	for n := 4 << 10; n < 64<<10; n *= 2 {
		p.Request = append(p.Request, n)
	}
	for n := 64 << 10; n < 64<<20; n *= 2 {
		p.Request = append(p.Request, n, n/4*5, n/4*6, n/4*7)
	}
	p.Request = append(p.Request, 64<<20)
	return p
}

// defaultPadding is shared by everyone who left a field zero; it is never changed.
var defaultPadding = DefaultPadding()

// request returns the padded size of a request of n octets.
func (p Padding) request(n int64) int64 {
	steps := p.Request
	if len(steps) == 0 {
		steps = defaultPadding.Request
	}
	for _, step := range steps {
		if n <= int64(step) {
			return int64(step)
		}
	}
	return roundUp(n, int64(max(1, steps[len(steps)-1])))
}

// frame returns the unit of a padded answer: at least 1, and at most half of what
// fits a chunk, so that a head that fills a chunk can be split at a multiple.
func (p Padding) frame() int {
	if p.ResponseFrame <= 0 {
		return defaultPadding.ResponseFrame
	}
	return min(p.ResponseFrame, maxChunk/2)
}

func roundUp[T int | int64](n, unit T) T { return (n + unit - 1) / unit * unit }

// The content coding "padded". Padding of binary HTTP stands at the end of a
// message, which is of no help while an answer streams. So a client that asks for
// this coding inside the seal gets a body of frames
//
//	data length (2 octets), padding length (2 octets), data, padding (zeros)
//
// whose padding the node chooses. Frames without data are legal.
const (
	paddedCoding = "padded"
	frameHeader  = 4
)

// appendFrame appends one frame of the padded coding.
func appendFrame(b, data []byte, padding int) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	b = binary.BigEndian.AppendUint16(b, uint16(padding))
	b = append(b, data...)
	return appendZeros(b, padding)
}

var zeros [maxChunk]byte

// appendZeros appends n ≤ maxChunk zero octets.
func appendZeros(b []byte, n int) []byte { return append(b, zeros[:n]...) }

// unpadder reads the data of a body in the padded coding.
type unpadder struct {
	r       io.Reader
	data    int // octets of data left in this frame
	padding int // octets of padding that follow them
	scratch [512]byte
}

var errPadded = errors.New("malformed padded coding")

func (u *unpadder) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for u.data == 0 {
		if err := u.skip(); err != nil {
			return 0, err
		}
		head := u.scratch[:frameHeader]
		if n, err := io.ReadFull(u.r, head); err != nil {
			if n > 0 && err == io.ErrUnexpectedEOF {
				err = fmt.Errorf("%w: truncated frame", errPadded)
			}
			return 0, err
		}
		u.data = int(binary.BigEndian.Uint16(head))
		u.padding = int(binary.BigEndian.Uint16(head[2:]))
	}
	n, err := u.r.Read(p[:min(len(p), u.data)])
	u.data -= n
	if err == io.EOF && (u.data > 0 || u.padding > 0) {
		err = fmt.Errorf("%w: truncated frame", errPadded)
	}
	return n, err
}

// skip reads the padding of a frame. One octet that is not zero means that the two
// ends disagree about where they are, so it is refused.
func (u *unpadder) skip() error {
	for u.padding > 0 {
		b := u.scratch[:min(u.padding, len(u.scratch))]
		n, err := u.r.Read(b)
		for _, c := range b[:n] {
			if c != 0 {
				return fmt.Errorf("%w: padding is not zero", errPadded)
			}
		}
		u.padding -= n
		if err == io.EOF && u.padding > 0 {
			return fmt.Errorf("%w: truncated frame", errPadded)
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// takePadded reports whether h accepts the padded coding and removes that from its
// Accept-Encoding, which is nobody's business beyond the Handler.
func takePadded(h http.Header) bool {
	lines := h.Values("Accept-Encoding")
	var rest []string
	asked := false
	for _, line := range lines {
		for _, item := range strings.Split(line, ",") {
			item = strings.TrimSpace(item)
			coding, params, _ := strings.Cut(item, ";")
			switch {
			case item == "":
			case strings.EqualFold(strings.TrimSpace(coding), paddedCoding):
				asked = asked || strings.TrimSpace(params) == ""
			default:
				rest = append(rest, item)
			}
		}
	}
	if len(rest) == 0 {
		h.Del("Accept-Encoding")
	} else if len(lines) > 0 {
		h.Set("Accept-Encoding", strings.Join(rest, ", "))
	}
	return asked
}

// stripPadded removes a trailing "padded" from h's Content-Encoding and reports
// whether it was there.
func stripPadded(h http.Header) bool {
	codings := strings.Join(h.Values("Content-Encoding"), ", ")
	i := strings.LastIndexByte(codings, ',')
	if !strings.EqualFold(strings.TrimSpace(codings[i+1:]), paddedCoding) {
		return false
	}
	if rest := strings.TrimSpace(codings[:max(i, 0)]); rest != "" {
		h.Set("Content-Encoding", rest)
	} else {
		h.Del("Content-Encoding")
	}
	return true
}
