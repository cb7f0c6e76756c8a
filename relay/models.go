package relay

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxModels and maxModelList bound the list of models. Nodes choose the names,
	// and nobody vouches for nodes.
	maxModels    = 10_000
	maxModelList = 1 << 20

	// modelsInterval is the least time between two makings of the list, or
	// modelsRest times as long as the last one took: that much of a processor at
	// most.
	modelsInterval = time.Second
	modelsRest     = 20
)

// model is an entry of OpenAI's list of models. The relay must not reach the
// openai package, so it has its own four fields of it.
type model struct {
	ID            string `json:"id"`
	Object        string `json:"object"`
	Created       int64  `json:"created"`
	OwnedBy       string `json:"owned_by"`
	ContextLength int    `json:"context_length,omitempty"`
}

// modelList is the list as it was made from the entries of a moment.
type modelList struct {
	of     *[]*entry // changes with the directory
	text   []byte
	until  time.Time // the first descriptor of it expires
	rested time.Time // before then there is no other
}

func (l *modelList) stale(of *[]*entry, now time.Time) bool {
	return l == nil || (l.of != of || !now.Before(l.until)) && !now.Before(l.rested)
}

// modelCache makes the list once for all who ask.
type modelCache struct {
	list atomic.Pointer[modelList]
	mu   sync.Mutex // held to make list
}

// get returns the list, made anew if the directory has changed. While one
// request makes it the others get the one before.
func (c *modelCache) get(d *directory) []byte {
	l := c.list.Load()
	if !l.stale(d.entries.Load(), time.Now()) {
		return l.text
	}
	if l == nil {
		c.mu.Lock()
	} else if !c.mu.TryLock() {
		return l.text
	}
	defer c.mu.Unlock()
	of, now := d.entries.Load(), time.Now()
	if l = c.list.Load(); l.stale(of, now) {
		l = listModels(of, now)
		ended := time.Now()
		l.rested = ended.Add(max(modelsInterval, modelsRest*ended.Sub(now)))
		c.list.Store(l)
	}
	return l.text
}

// listModels makes the list: every model once, with the longest context there
// is. If there are too many the first of each node come first, so that nobody
// with a few nodes can crowd out the others.
func listModels(of *[]*entry, now time.Time) *modelList {
	l := &modelList{of: of, until: now.Add(time.Hour)}
	var inForce []*entry
	if of != nil {
		for _, e := range *of {
			if now.Before(e.notAfter) {
				inForce = append(inForce, e)
				if e.notAfter.Before(l.until) {
					l.until = e.notAfter
				}
			}
		}
	}
	found := map[string]*model{}
	var inOrder []*model
	for i, left := 0, inForce; len(left) > 0 && len(inOrder) < maxModels; i++ {
		n := 0
		for _, e := range left {
			if i >= len(e.models) {
				continue
			}
			left[n] = e
			n++
			m := found[e.models[i].ID]
			if m == nil {
				if len(inOrder) == maxModels {
					continue
				}
				m = &model{ID: e.models[i].ID, Object: "model", OwnedBy: "token.place"}
				found[m.ID], inOrder = m, append(inOrder, m)
			}
			m.ContextLength = max(m.ContextLength, e.models[i].ContextLength)
		}
		left = left[:n]
	}
	l.text = encodeModels(inOrder)
	return l
}

// encodeModels writes as many of the first models as fit, in order of names.
func encodeModels(models []*model) []byte {
	type line struct {
		id   string
		text []byte
	}
	var lines []line
	size := 64
	for _, m := range models {
		text, err := json.Marshal(m)
		if err != nil {
			panic("internal error: " + err.Error())
		}
		if size += len(text) + 1; size > maxModelList {
			break
		}
		lines = append(lines, line{m.ID, text})
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.id, b.id) })
	b := append(make([]byte, 0, min(size, maxModelList)), `{"object":"list","data":[`...)
	for i, l := range lines {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, l.text...)
	}
	return append(b, "]}\n"...)
}

// serveModels is GET /v1/models.
func (r *Relay) serveModels(w http.ResponseWriter, req *http.Request) {
	text := r.models.get(&r.directory)
	r.answer(w, "application/json")
	r.send(w, text)
}
