package client

import (
	"io"
	"net/http"
	"time"

	"token.place/identity"
)

const (
	MaxBody     = maxBody
	MaxAttempts = maxAttempts
	MaxNodes    = maxNodes
	MaxAffinity = maxAffinity
)

// ReadDirectory counts the entries of a directory, good and bad.
func ReadDirectory(r io.Reader) (good, bad int, err error) {
	err = readDirectory(r, func(_ entry, err error) {
		if err != nil {
			bad++
		} else {
			good++
		}
	})
	return good, bad, err
}

// ReadAliases is LoadAliases on an open file.
func ReadAliases(r io.Reader) (map[string]string, error) { return readAliases(r) }

// Remember notes a conversation's node.
func Remember(t *Transport, key string, id identity.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.affinity.put(key, id)
}

// Remembered is how many conversations t has a node for.
func Remembered(t *Transport) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.affinity.young) + len(t.affinity.old)
}

// InFlight is how many exchanges t counts for a node.
func InFlight(t *Transport, id identity.ID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.nodes[id]; m != nil {
		return m.state.inFlight
	}
	return 0
}

// Refresh fetches the directories of all relays.
func Refresh(t *Transport) {
	for _, r := range t.relays {
		t.fetch(r, 0)
	}
}

// Choose chooses a node for a conversation.
func Choose(t *Transport, model, conversation string) identity.ID {
	way, err := t.choose(&call{req: new(http.Request), model: model, key: model + conversation}, &trial{})
	if err != nil {
		panic(err)
	}
	t.release(way)
	return way.member.node.id
}

// PassOn writes a node's answer to an app that asked for a stream.
func PassOn(w http.ResponseWriter, r *http.Request, resp *http.Response) {
	s := newStream(w, true, time.Second)
	defer s.stop()
	s.copy(r, resp)
}
