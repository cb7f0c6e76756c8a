package client

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"token.place/identity"
)

const (
	// avoidNode is how long a node that failed is chosen only if no other is left,
	// and avoidRelay the same for a relay: until the fetch that the failure began
	// has told whether it is gone.
	avoidNode  = 5 * time.Second
	avoidRelay = dialTime + 5*time.Second
	// maxAffinity is how many conversations are remembered, at most twice over.
	maxAffinity = 2048
)

// member is a node of the merged directory, with all relays that have it. Only its
// state changes.
type member struct {
	node   *node // of the newest descriptor that any relay has
	relays []*relay
	load   offer // the highest that any relay says
	state  *state
}

// state is what we know of a node from our own exchanges. It outlives
// directories. Transport.mu guards it.
type state struct {
	inFlight int
	avoid    map[*relay]time.Time
}

// route is a way to a node.
type route struct {
	member *member // nil for none
	relay  *relay
}

// merge makes one directory of those of all relays. t.mu is held.
func (t *Transport) merge() {
	old := t.nodes
	t.nodes, t.models = map[identity.ID]*member{}, map[string][]*member{}
	for _, r := range t.relays {
		for _, o := range r.offers {
			m := t.nodes[o.node.id]
			if m == nil {
				m = &member{node: o.node, load: o, state: &state{}}
				if was := old[o.node.id]; was != nil {
					m.state = was.state
				}
				t.nodes[o.node.id] = m
			}
			if o.node.notBefore.After(m.node.notBefore) {
				m.node = o.node
			}
			if o.inFlight > m.load.inFlight {
				m.load = o
			}
			if !slices.Contains(m.relays, r) {
				m.relays = append(m.relays, r)
			}
		}
	}
	for _, m := range t.nodes {
		for _, model := range m.node.models {
			t.models[model.ID] = append(t.models[model.ID], m)
		}
	}
}

// trial is the search for a node for one request.
type trial struct {
	tried  []route
	since  uint64 // Transport.failures: a directory from before is not good enough to give up by
	second bool   // what failed has been given another chance
	err    *Error // the last failure of an attempt
	busy   bool   // it was for want of room
}

// has reports whether a way was tried. A node with new keys is another.
func (tr *trial) has(m *member, r *relay) bool {
	return slices.ContainsFunc(tr.tried, func(o route) bool { return o.relay == r && o.member.node == m.node })
}

func (tr *trial) failure() error {
	if tr.err == nil {
		return nil // and not a nil *Error, which would be an error
	}
	return tr.err
}

var errClosed = failf(http.StatusServiceUnavailable, "closed", "the client is shutting down: start it again")

// choose finds the next way to try, and counts the request in its node's load.
// It waits for a directory if it must. Having tried all nodes that it knows it
// asks the relays again, and goes through them once more.
func (t *Transport) choose(c *call, tr *trial) (route, error) {
	for t.ctx.Err() == nil {
		way, changed, err := t.try(c, tr)
		if changed == nil {
			return way, err
		}
		select {
		case <-changed:
		case <-c.req.Context().Done():
			return route{}, c.req.Context().Err()
		case <-t.ctx.Done():
		}
	}
	return route{}, errClosed
}

// try is choose without the wait. It returns a channel to wait on if another
// directory may help.
func (t *Transport) try(c *call, tr *trial) (way route, changed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	pending := t.refresh(now, tr.since)
	if way = t.pick(c, tr, now); way.member == nil && !pending && tr.err != nil && !tr.busy && !tr.second && t.answering() {
		// The directory is newer than the last failure: what it still lists
		// deserves another attempt.
		tr.tried, tr.second = nil, true
		way = t.pick(c, tr, now)
	}
	switch {
	case way.member != nil:
		way.member.state.inFlight++
		return way, nil, nil
	case pending:
		return route{}, t.changed, nil
	case tr.err != nil:
		return route{}, nil, tr.err
	}
	return route{}, nil, t.missing(c, now)
}

// answering reports whether any relay gave its directory when last asked. t.mu is
// held.
func (t *Transport) answering() bool {
	return slices.ContainsFunc(t.relays, func(r *relay) bool { return r.err == nil })
}

// release takes a request out of its node's load.
func (t *Transport) release(way route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	way.member.state.inFlight--
}

// wake tells one request that waits for room that there may be some. An attempt
// that found none must not: those that wait would keep each other busy.
func (t *Transport) wake() {
	select {
	case t.freed <- struct{}{}: // to the one that has waited longest
	default:
	}
}

// pick chooses a node: the one that has the conversation in its cache, if it has
// room; else the less busy of two drawn at random. The order of a relay's list
// never counts. Ways that failed lately come last. t.mu is held.
func (t *Transport) pick(c *call, tr *trial, now time.Time) route {
	if id, ok := t.affinity.get(c.key); ok {
		if m := t.nodes[id]; m != nil && slices.Contains(t.models[c.model], m) && m.busy() < 1 {
			if r, good := m.via(tr, now); good {
				return route{m, r}
			}
		}
	}
	if way := t.draw(c, tr, now, true); way.member != nil {
		return way
	}
	return t.draw(c, tr, now, false)
}

// draw takes two different nodes with equal chance from those that offer the
// model, only from good ones or from all, and returns the less busy.
func (t *Transport) draw(c *call, tr *trial, now time.Time, good bool) route {
	var a, b route
	n := 0
	for _, m := range t.models[c.model] {
		r, isGood := m.via(tr, now)
		if r == nil || good && !isGood {
			continue
		}
		// Reservoir sampling: one pass, nothing allocated.
		switch n++; {
		case n == 1:
			a = route{m, r}
		case n == 2:
			b = route{m, r}
		default:
			switch rand.IntN(n) {
			case 0:
				a = route{m, r}
			case 1:
				b = route{m, r}
			}
		}
	}
	if b.member == nil {
		return a
	}
	if as, bs := a.member.score(), b.member.score(); bs < as || bs == as && rand.IntN(2) == 0 {
		return b
	}
	return a
}

// via returns a relay to reach the node through that this trial has not used yet,
// and whether it is a good one: it answers, and nothing failed there lately.
func (m *member) via(tr *trial, now time.Time) (via *relay, good bool) {
	if !now.Before(m.node.notAfter) {
		return nil, false
	}
	n := 0
	for _, r := range m.relays {
		if tr.has(m, r) || !r.usable(now) {
			continue
		}
		ok := r.err == nil && now.After(r.avoid) && now.After(m.state.avoid[r])
		if ok && !good {
			via, good, n = nil, true, 0
		}
		if ok != good {
			continue
		}
		if n++; rand.IntN(n) == 0 {
			via = r
		}
	}
	return via, good
}

// slots is how many exchanges the node takes at a time. What it signed counts,
// unless the relay knows of less.
func (m *member) slots() float64 {
	if c := m.load.capacity; c > 0 && c < m.node.capacity {
		return float64(c)
	}
	return float64(m.node.capacity)
}

// score orders nodes: others' load and our own since. The relay's number may
// have some of ours in it; that is the same mistake for every node.
func (m *member) score() float64 { return float64(m.load.inFlight+m.state.inFlight) / m.slots() }

// busy is the part of the node that is surely taken.
func (m *member) busy() float64 { return float64(max(m.load.inFlight, m.state.inFlight)) / m.slots() }

// blame makes a way come last for a while: for its node, or for all nodes of its
// relay. It returns the number of the failure.
func (t *Transport) blame(way route, wholeRelay bool) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	if wholeRelay {
		way.relay.avoid = time.Now().Add(avoidRelay)
		return t.failures
	}
	if way.member.state.avoid == nil {
		way.member.state.avoid = map[*relay]time.Time{}
	}
	way.member.state.avoid[way.relay] = time.Now().Add(avoidNode)
	return t.failures
}

// praise ends what blame began, and notes which node has the conversation.
func (t *Transport) praise(c *call, way route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(way.member.state.avoid, way.relay)
	if c.key != "" {
		t.affinity.put(c.key, way.member.node.id)
	}
}

// affinity remembers the last node of recent conversations, in memory only. It
// is two maps: when the young one is full it becomes the old one, whose entries
// go with the next turn unless they are used.
type affinity struct {
	young, old map[string]identity.ID
}

func (a *affinity) get(key string) (identity.ID, bool) {
	if key == "" {
		return "", false
	}
	id, ok := a.young[key]
	if !ok {
		id, ok = a.old[key]
	}
	return id, ok
}

func (a *affinity) put(key string, id identity.ID) {
	if a.young == nil || len(a.young) >= maxAffinity {
		a.young, a.old = make(map[string]identity.ID), a.young
	}
	a.young[key] = id
}
