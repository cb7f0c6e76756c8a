package openai

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"mime"
	"net/textproto"
)

const (
	maxParts      = 128
	maxPartHeader = 8 << 10
)

// peekForm finds the fields of a multipart/form-data body. It takes only the
// plain form that clients write: no preamble, lines that end in CRLF, no
// padding after a boundary.
func peekForm(contentType string, body []byte) (Request, error) {
	_, params, err := mime.ParseMediaType(contentType)
	boundary := params["boundary"]
	if err != nil || boundary == "" || len(boundary) > 70 {
		return Request{}, errors.New("the content type multipart/form-data needs a boundary of 1 to 70 characters")
	}
	r := Request{form: true}
	seen := map[string]bool{}
	for part, err := range parts(body, boundary) {
		if err != nil {
			return Request{}, err
		}
		if part.name != "model" && part.name != "stream" {
			continue
		}
		if seen[part.name] {
			return Request{}, fmt.Errorf("the form field %q is there twice", part.name)
		}
		if seen[part.name] = true; part.encoded {
			return Request{}, fmt.Errorf("the form field %q must be plain text, not a file or encoded", part.name)
		}
		value := string(part.value.of(body))
		if part.name == "stream" {
			r.Stream = value == "true" || value == "True" || value == "1"
			continue
		}
		if r.Model, r.model = value, part.value; value != "" && !ValidID(value) {
			return Request{}, errBadModel
		}
	}
	return r, nil
}

// part is one field of a form.
type part struct {
	name    string
	value   span
	encoded bool // it is a file or has a transfer encoding
}

// parts yields the fields of a form until the first error.
func parts(body []byte, boundary string) func(yield func(part, error) bool) {
	return func(yield func(part, error) bool) {
		delimiter := []byte("\r\n--" + boundary)
		if !bytes.HasPrefix(body, delimiter[2:]) {
			yield(part{}, errors.New("the form does not begin with its boundary"))
			return
		}
		at := len(delimiter) - 2
		for range maxParts {
			if rest := body[at:]; bytes.Equal(rest, []byte("--")) || bytes.Equal(rest, []byte("--\r\n")) {
				return
			}
			if !bytes.HasPrefix(body[at:], []byte("\r\n")) {
				yield(part{}, fmt.Errorf("the form's boundary is not followed by a line end at byte %d", at))
				return
			}
			at += 2
			p, headerLen, err := partHeader(body[at:])
			if err != nil {
				yield(part{}, fmt.Errorf("the form part at byte %d: %w", at, err))
				return
			}
			at += headerLen
			// An empty value has the delimiter right after the header's blank line,
			// so the search begins with that line's CRLF.
			n := bytes.Index(body[at-2:], delimiter)
			if n == 0 {
				yield(part{}, fmt.Errorf("the form part before byte %d has no value", at))
				return
			}
			if n < 0 {
				yield(part{}, errors.New("the form ends without its closing boundary"))
				return
			}
			p.value = span{at, at - 2 + n}
			if at = p.value.end + len(delimiter); !yield(p, nil) {
				return
			}
		}
		yield(part{}, fmt.Errorf("the form has more than %d parts", maxParts))
	}
}

// partHeader reads a part's header and returns its length with the blank line.
func partHeader(b []byte) (p part, n int, err error) {
	window := b[:min(len(b), maxPartHeader)]
	end := bytes.Index(window, []byte("\r\n\r\n"))
	if end < 0 {
		return part{}, 0, fmt.Errorf("no header of at most %d bytes", maxPartHeader)
	}
	n = end + 4
	header, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(window[:n]))).ReadMIMEHeader()
	if err != nil {
		return part{}, 0, errors.New("a malformed header")
	}
	if len(header["Content-Disposition"]) != 1 {
		return part{}, 0, errors.New("no single Content-Disposition")
	}
	disposition := header.Get("Content-Disposition")
	media, params, err := mime.ParseMediaType(disposition)
	name := params["name"]
	if err != nil || media != "form-data" || name == "" {
		return part{}, 0, errors.New("no Content-Disposition with form-data and a name")
	}
	// Parsers differ in what they make of escapes and of name*. Files, which may
	// need those for their names, are not looked at.
	_, file := params["filename"]
	if !file && disposition != `form-data; name="`+name+`"` && disposition != "form-data; name="+name {
		return part{}, 0, errors.New(`a Content-Disposition other than form-data; name="..."`)
	}
	p = part{name: name, encoded: file || header.Get("Content-Transfer-Encoding") != ""}
	return p, n, nil
}
