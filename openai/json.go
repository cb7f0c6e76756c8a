package openai

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"
)

// The functions of this file walk JSON that checkJSON accepted, by offsets, so
// that the bytes of a body are never written again.

// members yields the keys, unescaped, and values of the object at b[i].
func members(b []byte, i int) iter.Seq2[[]byte, span] {
	return func(yield func([]byte, span) bool) {
		i = skipSpace(b, i+1)
		for b[i] != '}' {
			end := skipString(b, i)
			key := b[i+1 : end-1]
			if bytes.IndexByte(key, '\\') >= 0 {
				var s string
				if json.Unmarshal(b[i:end], &s) == nil {
					key = []byte(s)
				}
			}
			i = skipSpace(b, skipSpace(b, end)+1) // past the colon
			value := span{i, skipValue(b, i)}
			if !yield(key, value) {
				return
			}
			if i = skipSpace(b, value.end); b[i] == ',' {
				i = skipSpace(b, i+1)
			}
		}
	}
}

// elements yields the elements of the array at b[i].
func elements(b []byte, i int) iter.Seq[span] {
	return func(yield func(span) bool) {
		i = skipSpace(b, i+1)
		for b[i] != ']' {
			value := span{i, skipValue(b, i)}
			if !yield(value) {
				return
			}
			if i = skipSpace(b, value.end); b[i] == ',' {
				i = skipSpace(b, i+1)
			}
		}
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the offset after the string at b[i].
func skipString(b []byte, i int) int {
	for at := i + 1; ; {
		at += bytes.IndexByte(b[at:], '"')
		escapes := 0
		for b[at-1-escapes] == '\\' {
			escapes++
		}
		if at++; escapes%2 == 0 {
			return at
		}
	}
}

// skipValue returns the offset after the value at b[i].
func skipValue(b []byte, i int) int {
	for depth := 0; i < len(b); {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ' ', '\t', '\n', '\r', ',', ':':
			i++
			continue // between values
		default: // a number, true, false or null
			for i++; i < len(b) && strings.IndexByte(" \t\n\r,]}", b[i]) < 0; i++ {
			}
		}
		if depth == 0 {
			return i
		}
	}
	return i
}
