package ohttp

import (
	"errors"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// hopByHop names the fields that concern one connection (RFC 9110 section 7.6.1).
// There is no connection inside a sealed message, so they do not cross it.
var hopByHop = map[string]bool{
	"Connection":          true,
	"Keep-Alive":          true,
	"Proxy-Authenticate":  true,
	"Proxy-Authorization": true,
	"Proxy-Connection":    true,
	"Te":                  true,
	"Trailer":             true,
	"Transfer-Encoding":   true,
	"Upgrade":             true,
}

var errField = errors.New("invalid header field")

// headerFields turns h into field lines for a binary message, sorted, without the
// hop-by-hop fields and those that skip names (in canonical form). With lenient it
// leaves out fields that no message can carry; otherwise they are an error, which
// does not quote them.
func headerFields(h http.Header, lenient bool, skip ...string) ([]field, error) {
	named := connectionNames(h)
	fields := make([]field, 0, len(h)+2)
	for key, values := range h {
		canonical := textproto.CanonicalMIMEHeaderKey(key)
		if hopByHop[canonical] || slices.Contains(named, canonical) || slices.Contains(skip, canonical) {
			continue
		}
		if !validName(key) {
			if lenient {
				continue
			}
			return nil, errField
		}
		name := strings.ToLower(key)
		for _, v := range values {
			v = strings.Trim(v, " \t")
			if validValue(v) {
				fields = append(fields, field{name, v})
			} else if !lenient {
				return nil, errField
			}
		}
	}
	slices.SortStableFunc(fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
	return fields, nil
}

// connectionNames returns what a Connection field adds to the hop-by-hop fields.
func connectionNames(h http.Header) (names []string) {
	for _, line := range h["Connection"] {
		for _, name := range strings.Split(line, ",") {
			names = append(names, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	return names
}

// fieldsHeader turns field lines into a header map, without hop-by-hop fields.
// Cookie lines become one, as RFC 9292 section 3.6 says.
func fieldsHeader(fields []field) http.Header {
	h := make(http.Header, len(fields))
	for _, f := range fields {
		key := textproto.CanonicalMIMEHeaderKey(f.name)
		if cookies := h[key]; key == "Cookie" && len(cookies) > 0 {
			cookies[0] += "; " + f.value
			continue
		}
		h[key] = append(h[key], f.value)
	}
	for _, name := range connectionNames(h) {
		h.Del(name)
	}
	for name := range hopByHop {
		delete(h, name)
	}
	return h
}
