package relay

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"token.place/identity"
	"token.place/tunnel"
)

// entry is what the directory says of a node that is connected. There are many:
// it keeps the bundle once, as the JSON that clients get.
type entry struct {
	id       identity.ID
	conn     *tunnel.Conn
	models   []identity.Model
	capacity int
	notAfter time.Time
	json     []byte               // {"id":…,"bundle":{…},"load":{"in_flight":
	load     atomic.Pointer[load] // as the node last said; nil until then
}

// load is a hint, not signed, of how busy a node is.
type load struct {
	InFlight int `json:"in_flight"`
	Capacity int `json:"capacity"`
}

// newEntry makes the entry for a bundle that was opened.
func newEntry(id identity.ID, d identity.Descriptor, b identity.Bundle, c *tunnel.Conn) (*entry, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	text = slices.Concat([]byte(`{"id":"`+id+`","bundle":`), text, []byte(`,"load":{"in_flight":`))
	return &entry{id: id, conn: c, models: d.Models, capacity: d.Capacity, notAfter: d.NotAfter, json: text}, nil
}

// append adds the entry's JSON to b. The relay knows of its own exchanges
// before the node says so, and the node of those from other relays.
func (e *entry) append(b []byte) []byte {
	l := load{InFlight: e.conn.InFlight(), Capacity: e.capacity}
	if said := e.load.Load(); said != nil {
		l = load{InFlight: max(l.InFlight, said.InFlight), Capacity: said.Capacity}
	}
	b = append(b, e.json...)
	b = strconv.AppendInt(b, int64(l.InFlight), 10)
	b = append(b, `,"capacity":`...)
	b = strconv.AppendInt(b, int64(l.Capacity), 10)
	return append(b, "}}"...)
}

func (e *entry) offers(model string) bool {
	return slices.ContainsFunc(e.models, func(m identity.Model) bool { return m.ID == model })
}

// directory holds the entries of nodes that take exchanges, in order of their
// IDs. Readers share a slice that is never changed, so that a slow one holds up
// nobody.
type directory struct {
	max     int
	hub     *tunnel.Hub
	entries atomic.Pointer[[]*entry]

	mu      sync.Mutex                   // held to replace entries; guards the field below
	leaving map[identity.ID]*tunnel.Conn // out of the directory, exchanges run on: one for each node
}

var (
	errFull     = errors.New("the relay has as many nodes as it takes")
	errReplaced = errors.New("the node has a newer connection")
)

func (d *directory) all() []*entry {
	if p := d.entries.Load(); p != nil {
		return *p
	}
	return nil
}

// Connected is how many nodes can be given an exchange now.
func (r *Relay) Connected() int { return len(r.directory.all()) }

func find(all []*entry, id identity.ID) (int, bool) {
	return slices.BinarySearchFunc(all, id, func(e *entry, id identity.ID) int { return cmp.Compare(e.id, id) })
}

// put adds e or replaces the entry of the same node, if its connection is the
// one that the hub uses. Asked with the lock held, it makes that true in the end
// when two connections of a node come at once, or an older one renews.
func (d *directory) put(e *entry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hub.Conn(string(e.id)) != e.conn {
		return errReplaced
	}
	all := d.all()
	i, found := find(all, e.id)
	// Who leaves counts until its connection is closed, or there would be no
	// end to them. A node that comes back meanwhile has its place.
	if !found && d.leaving[e.id] == nil && len(all)+len(d.leaving) >= d.max {
		return errFull
	}
	end := i
	if found {
		end++
		if old := all[i].conn; old != e.conn {
			d.depart(e.id, old)
		}
	}
	next := slices.Concat(all[:i], []*entry{e}, all[end:])
	d.entries.Store(&next)
	return nil
}

// depart notes that a connection leaves. One of the same node that still does is
// closed; d.mu is held.
func (d *directory) depart(id identity.ID, c *tunnel.Conn) {
	if d.leaving == nil {
		d.leaving = map[identity.ID]*tunnel.Conn{}
	}
	if older := d.leaving[id]; older != nil && older != c {
		older.Close()
	}
	d.leaving[id] = c
}

// leave takes out the entry of a connection, which may stay until gone, unless
// a newer one replaced it: then it leaves already.
func (d *directory) leave(id identity.ID, c *tunnel.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.all()
	if i, found := find(all, id); found && all[i].conn == c {
		next := slices.Concat(all[:i], all[i+1:])
		d.entries.Store(&next)
		d.depart(id, c)
	}
}

// gone forgets a connection that is closed.
func (d *directory) gone(id identity.ID, c *tunnel.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leaving[id] == c {
		delete(d.leaving, id)
	}
}

// get returns the entry of a node whose descriptor is in force, or nil.
func (d *directory) get(id identity.ID, now time.Time) *entry {
	all := d.all()
	if i, found := find(all, id); found && now.Before(all[i].notAfter) {
		return all[i]
	}
	return nil
}

// maxIDs is how many nodes a client may ask for by name.
const maxIDs = 100

// pick returns the entries in force that a query of GET /v1/nodes asks for.
func (d *directory) pick(query string, now time.Time) ([]*entry, error) {
	q, err := url.ParseQuery(query)
	if err != nil || len(q["model"]) > 1 || len(q["id"]) > maxIDs {
		return nil, errors.New("malformed query")
	}
	all, model := d.all(), q.Get("model")
	if ids := q["id"]; len(ids) > 0 {
		slices.Sort(ids)
		all = nil
		for _, s := range slices.Compact(ids) {
			id, err := identity.ParseID(s)
			if err != nil {
				return nil, err
			}
			if e := d.get(id, now); e != nil {
				all = append(all, e)
			}
		}
	}
	var picked []*entry
	for _, e := range all {
		if now.Before(e.notAfter) && (!q.Has("model") || e.offers(model)) {
			picked = append(picked, e)
		}
	}
	return picked, nil
}

// serveNodes is GET /v1/nodes.
func (r *Relay) serveNodes(w http.ResponseWriter, req *http.Request) {
	picked, err := r.directory.pick(req.URL.RawQuery, time.Now())
	if err != nil {
		r.refuse(w, req, badQuery)
		return
	}
	r.answer(w, "application/json")
	b := append(make([]byte, 0, bufferSize), `{"nodes":[`...)
	for i, e := range picked {
		if i > 0 {
			b = append(b, ',')
		}
		b = e.append(b)
		if len(b) < bufferSize-4<<10 {
			continue
		}
		// In pieces, so that a slow reader of a long list costs one buffer.
		if !r.send(w, b) {
			return
		}
		b = b[:0]
	}
	r.send(w, append(b, "]}\n"...))
}

// send writes b in pieces, each of which the client has to take in time.
func (r *Relay) send(w http.ResponseWriter, b []byte) bool {
	rc := http.NewResponseController(w)
	for piece := range slices.Chunk(b, bufferSize) {
		rc.SetWriteDeadline(time.Now().Add(r.cfg.StallTimeout))
		if _, err := w.Write(piece); err != nil {
			return false
		}
	}
	return true
}

// serveKeys is GET /v1/nodes/{node}/ohttp-keys.
func (r *Relay) serveKeys(w http.ResponseWriter, req *http.Request, node string) {
	id, err := identity.ParseID(node)
	if err != nil {
		r.refuse(w, req, notFound)
		return
	}
	now := time.Now()
	e := r.directory.get(id, now)
	if e == nil {
		r.refuse(w, req, nodeUnavailable)
		return
	}
	var listed struct{ Bundle identity.Bundle }
	if err := json.Unmarshal(e.append(nil), &listed); err != nil {
		panic("internal error: " + err.Error())
	}
	_, d, err := listed.Bundle.Open(now)
	if err != nil {
		r.refuse(w, req, nodeUnavailable)
		return
	}
	r.answer(w, "application/ohttp-keys")
	w.Write(d.Keys)
}

// answer begins an answer of the relay's own. No header lets a web page of
// another origin read it: pages come with a later version, here.
func (r *Relay) answer(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h["Cache-Control"] = noStore
	h["Content-Type"] = []string{contentType}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(r.cfg.StallTimeout))
}
