package client

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// guard keeps web pages that are none of the user's from calling a server that
// is open to every program of the machine. A page can make a browser send
// requests here, and can rebind its own name to 127.0.0.1; it cannot choose the
// Host and Origin fields that the browser sends.
type guard struct {
	hosts   map[string]bool
	origins map[string]bool
}

func newGuard(hosts, origins []string) (guard, error) {
	g := guard{map[string]bool{}, map[string]bool{}}
	for _, h := range hosts {
		if h == "" || strings.ContainsAny(h, "/*@ ") {
			return guard{}, fmt.Errorf("allowed host %q: want a name with or without a port, as in gpu.lan:8080", clip(h))
		}
		g.hosts[strings.ToLower(h)] = true
	}
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.Contains(o, "*") {
			return guard{}, fmt.Errorf("allowed origin %q: want scheme://host[:port] without a path, as in https://chat.example", clip(o))
		}
		g.origins[strings.ToLower(o)] = true
	}
	return g, nil
}

// check refuses a request that may come from a page which was not allowed, and
// sets the header fields that let an allowed one read the answer.
func (g guard) check(h http.Header, r *http.Request) error {
	if !g.host(r.Host) {
		return failf(http.StatusForbidden, "host_not_allowed",
			"this server does not go by the name %q: use 127.0.0.1 or localhost, or allow the name with --allow-host", clip(r.Host))
	}
	h.Add("Vary", "Origin")
	origins := r.Header["Origin"]
	if len(origins) == 0 {
		// A page of another site, in a request that has no Origin: an image, a link.
		if r.Header.Get("Sec-Fetch-Site") == "cross-site" {
			return failf(http.StatusForbidden, "origin_not_allowed", "this server does not answer pages of other sites: open the address yourself")
		}
		return nil
	}
	if len(origins) > 1 || !g.origin(origins[0]) {
		return failf(http.StatusForbidden, "origin_not_allowed",
			"this server does not answer pages of the origin %q: if it is yours, allow it with --allow-origin %s", clip(origins[0]), clip(origins[0]))
	}
	h.Set("Access-Control-Allow-Origin", origins[0])
	h.Set("Access-Control-Expose-Headers", "Retry-After, "+NodeHeader)
	return nil
}

// host reports whether a Host field names this server: loopback with any port, or
// what was allowed.
func (g guard) host(host string) bool {
	host = strings.ToLower(host)
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return isLoopback(name) || g.hosts[host] || g.hosts[name]
}

func isLoopback(name string) bool {
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"))
	return err == nil && ip.Zone() == "" && ip.Unmap().IsLoopback()
}

// origin reports whether pages of an origin may call. "null" is everybody's: any
// page can have it, from a sandboxed frame.
func (g guard) origin(origin string) bool {
	origin = strings.ToLower(origin)
	if g.origins[origin] {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil &&
		u.Path == "" && u.RawQuery == "" && u.Fragment == "" && isLoopback(u.Hostname())
}

// preflight answers a browser that asks before it sends. Whoever gets here has
// an origin that is allowed, or none. All fields may be sent, since only a few
// leave the machine.
func preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "GET, POST")
	if want := r.Header.Get("Access-Control-Request-Headers"); want != "" && len(want) <= 4<<10 {
		h.Set("Access-Control-Allow-Headers", want)
	}
	if r.Header.Get("Access-Control-Request-Private-Network") == "true" {
		h.Set("Access-Control-Allow-Private-Network", "true")
	}
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
}
