package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"token.place/identity"
)

// Model is a model that a request may name.
type Model struct {
	ID string
	// AliasOf is the model that an alias stands for; "" for a model itself.
	AliasOf string
	// ContextLength is how many tokens prompt and answer may have together, the
	// least that any of its nodes says; 0 is not known.
	ContextLength int
	Nodes         int // how many verified nodes offer it
}

// Node is a node in the directory of a relay. Of one that is refused there is only
// the ID, or what it says of itself if nothing at all is pinned.
type Node struct {
	ID       identity.ID // of a refused node what the relay says it is, or ""
	Relay    string      // URL of the relay that lists it
	Models   []identity.Model
	InFlight int // exchanges it is busy with, by the relay's word
	Capacity int // exchanges it takes at a time
	NotAfter time.Time
	// Refused says why the node is not used and what to do; "" for one that is.
	Refused string
}

// Models returns what can be asked for now: the models of all verified nodes,
// and the aliases of those, by name. The error is an *Error or the context's.
func (t *Transport) Models(ctx context.Context) ([]Model, error) {
	if err := t.await(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down() {
		return nil, t.relaysDown()
	}
	return t.list(time.Now()), nil
}

// Nodes returns every node that the relays list, verified or refused, ordered by
// ID; one that several relays list is there for each. The error is an *Error if
// no relay can be asked, or the context's.
func (t *Transport) Nodes(ctx context.Context) ([]Node, error) {
	if err := t.await(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down() {
		return nil, t.relaysDown()
	}
	var nodes []Node
	now := time.Now()
	for _, r := range t.relays {
		if !r.usable(now) {
			continue
		}
		for _, o := range r.offers {
			n := Node{ID: o.node.id, Relay: r.URL.String(), Models: slices.Clone(o.node.models),
				InFlight: o.inFlight, Capacity: o.node.capacity, NotAfter: o.node.notAfter}
			if !now.Before(n.NotAfter) {
				n.Refused = reasonExpired
			}
			nodes = append(nodes, n)
		}
		nodes = append(nodes, r.refused...)
	}
	slices.SortStableFunc(nodes, func(a, b Node) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return nodes, nil
}

// await waits until each relay's directory is fresh or could not be had.
func (t *Transport) await(ctx context.Context) error {
	for {
		t.mu.Lock()
		pending, changed := t.refresh(time.Now(), 0), t.changed
		t.mu.Unlock()
		if t.ctx.Err() != nil {
			return errClosed
		}
		if !pending {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.ctx.Done():
		}
	}
}

// down reports whether no relay's directory can be used. t.mu is held.
func (t *Transport) down() bool {
	now := time.Now()
	return !slices.ContainsFunc(t.relays, func(r *relay) bool { return r.usable(now) })
}

// list returns the models that can be asked for. t.mu is held.
func (t *Transport) list(now time.Time) []Model {
	offered := map[string]Model{}
	for id, members := range t.models {
		model := Model{ID: id}
		for _, m := range members {
			if r, _ := m.via(&trial{}, now); r == nil {
				continue
			}
			model.Nodes++
			i := slices.IndexFunc(m.node.models, func(o identity.Model) bool { return o.ID == id })
			if n := m.node.models[i].ContextLength; n > 0 && (model.ContextLength == 0 || n < model.ContextLength) {
				model.ContextLength = n
			}
		}
		if model.Nodes > 0 {
			offered[id] = model
		}
	}
	var models []Model
	for id, model := range offered {
		if _, hidden := t.aliases[id]; !hidden {
			models = append(models, model)
		}
	}
	for alias, target := range t.aliases {
		if m, ok := offered[target]; ok {
			models = append(models, Model{alias, target, m.ContextLength, m.Nodes})
		}
	}
	slices.SortFunc(models, func(a, b Model) int { return strings.Compare(a.ID, b.ID) })
	return models
}

// Unmet returns the aliases that are not among models, as Models returned them: no
// verified node offers what they stand for. Their Nodes is 0.
func (t *Transport) Unmet(models []Model) []Model {
	var unmet []Model
	for alias, target := range t.aliases {
		if !slices.ContainsFunc(models, func(m Model) bool { return m.ID == alias && m.AliasOf == target }) {
			unmet = append(unmet, Model{ID: alias, AliasOf: target})
		}
	}
	slices.SortFunc(unmet, func(a, b Model) int { return strings.Compare(a.ID, b.ID) })
	return unmet
}

// missing says why there is no node for a request. t.mu is held.
func (t *Transport) missing(c *call, now time.Time) error {
	models := t.list(now)
	switch {
	case t.down(), len(models) == 0 && !t.answering():
		return t.relaysDown()
	case len(models) == 0:
		return failf(http.StatusServiceUnavailable, "no_node", "%s", t.noNode())
	}
	return unknownModel(c, models)
}

// relaysDown is the error of the first relay, and how many others have one too.
func (t *Transport) relaysDown() *Error {
	var first *Error
	for _, r := range t.relays {
		if first == nil && r.err != nil {
			first = r.err
		}
	}
	if first == nil {
		return failf(http.StatusBadGateway, "relay_unreachable", "no relay has answered: try again")
	}
	e := *first
	if others := len(t.relays) - 1; others > 0 {
		e.Message += fmt.Sprintf(" (and the %d other relays fail as well)", others)
	}
	return &e
}

// noNode says why no node at all can be used.
func (t *Transport) noNode() string {
	var where []string
	refused, ids := map[string]int{}, map[string]identity.ID{}
	for _, r := range t.relays {
		where = append(where, r.URL.Host)
		for _, n := range r.refused {
			refused[n.Refused]++
			ids[n.Refused] = max(ids[n.Refused], n.ID)
		}
	}
	if len(where) > 3 {
		where = append(where[:3], "…")
	}
	text := fmt.Sprintf("no node that you trust is connected to %s", strings.Join(where, ", "))
	switch {
	case len(refused) == 0 && len(t.pinned) == 0:
		return text + ": pin a node with --node ID (`tokenplace node run` prints its ID)"
	case len(refused) == 0:
		return text + fmt.Sprintf(": %d pinned, none there. Start `tokenplace node run` on its machine with this relay, or check the IDs", len(t.pinned))
	}
	for _, reason := range []string{reasonUnpinned, reasonExpired, reasonKey, reasonForged, reasonName, reasonMalformed} {
		switch n := refused[reason]; {
		case n > 1:
			text += fmt.Sprintf("; %d are refused, for each %s", n, reason)
		case n == 1 && ids[reason] != "":
			text += fmt.Sprintf("; %s is refused: %s", ids[reason], reason)
		case n == 1:
			text += "; one is refused: " + reason
		}
	}
	return text
}

// maxListed is how many models an error names.
const maxListed = 12

func unknownModel(c *call, models []Model) *Error {
	var ids []string
	target := models[0].ID
	for _, m := range models {
		ids = append(ids, m.ID)
		if m.AliasOf != "" && target == m.ID {
			target = m.AliasOf
		}
	}
	text := fmt.Sprintf("no node that you trust offers the model %q", c.model)
	if c.asked != c.model {
		text = fmt.Sprintf("the alias %q stands for the model %q, which no node that you trust offers", c.asked, c.model)
	}
	more := ""
	if n := len(ids) - maxListed; n > 0 {
		ids, more = ids[:maxListed], fmt.Sprintf(" and %d more", n)
	}
	return failf(http.StatusNotFound, "model_not_found", "%s. There are: %s%s. Ask for one of these, or give it this name with --alias %s=%s",
		text, strings.Join(ids, ", "), more, c.asked, target)
}

// wireModel is OpenAI's model object, with what we add to it.
type wireModel struct {
	ID            string `json:"id"`
	Object        string `json:"object"`
	Created       int64  `json:"created"`
	OwnedBy       string `json:"owned_by"`
	ContextLength int    `json:"context_length,omitempty"`
	AliasOf       string `json:"alias_of,omitempty"`
}

func (m Model) wire() wireModel {
	return wireModel{m.ID, "model", 0, "token.place", m.ContextLength, m.AliasOf}
}

// serveModels answers GET /v1/models and /v1/models/{id} from what is verified.
func (t *Transport) serveModels(c *call) (*http.Response, error) {
	models, err := t.Models(c.req.Context())
	if err != nil {
		return nil, err
	}
	escaped, single := strings.CutPrefix(c.path, "/v1/models/")
	if !single {
		data := make([]wireModel, 0, len(models))
		for _, m := range models {
			data = append(data, m.wire())
		}
		return jsonResponse(c.req, struct {
			Object string      `json:"object"`
			Data   []wireModel `json:"data"`
		}{"list", data})
	}
	id, err := url.PathUnescape(escaped)
	i := slices.IndexFunc(models, func(m Model) bool { return m.ID == id })
	if err != nil || i < 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return nil, t.missing(&call{asked: id, model: id}, time.Now())
	}
	return jsonResponse(c.req, models[i].wire())
}

func jsonResponse(req *http.Request, v any) (*http.Response, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode models: %w", err)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       req,
	}, nil
}
