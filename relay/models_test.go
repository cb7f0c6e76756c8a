package relay_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/relay"
)

// many connects nodes with 128 models each, with names of their own.
func (w *world) many(nodes int, name func(node, i int) string) (all []*node) {
	for i := range nodes {
		c := credential(w)
		n := w.connect(c, 8, chunked("answer"))
		d := descriptor()
		d.Models = nil
		for j := range identity.MaxModels {
			d.Models = append(d.Models, identity.Model{ID: name(i, j), ContextLength: 1 + i})
		}
		n.lines <- bundleLine(w, c, d)
		all = append(all, n)
	}
	w.settle()
	return all
}

func (w *world) models() (ids []string, contexts map[string]int, size int) {
	w.Helper()
	_, body := w.get("/v1/models")
	var list struct {
		Object string
		Data   []struct {
			ID             string
			Context_Length int
		}
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || list.Object != "list" || list.Data == nil {
		w.Fatalf("%v: %.200s", err, body)
	}
	contexts = map[string]int{}
	for _, m := range list.Data {
		ids = append(ids, m.ID)
		contexts[m.ID] = m.Context_Length
	}
	return ids, contexts, len(body)
}

// Nodes with many long names make no list without end, and each has its first
// models in it.
func TestModelsAreBounded(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		all := w.many(50, func(node, i int) string { return fmt.Sprintf("%03d/%d/%s", i, node, strings.Repeat("x", 200)) })
		honest := w.join(chunked("answer"))
		ids, contexts, size := w.models()
		if size > 1<<20 || size < 1<<19 || !slices.IsSorted(ids) {
			t.Errorf("%d models in %d bytes, sorted %v", len(ids), size, slices.IsSorted(ids))
		}
		if contexts["pocket"] != 1024 {
			t.Error("a node's only model was crowded out")
		}
		for _, n := range append(all, honest) {
			n.close()
		}
	})
	test(t, relay.Config{}, func(w *world) {
		all := w.many(90, func(node, i int) string { return fmt.Sprint(node*128 + i) })
		all = append(all, w.many(1, func(node, i int) string { return fmt.Sprint(i * 128) })...)
		time.Sleep(time.Second)
		if ids, contexts, size := w.models(); len(ids) != 10_000 || size > 1<<20 || contexts["1280"] != 11 {
			t.Errorf("%d models in %d bytes, context %d", len(ids), size, contexts["1280"])
		}
		for _, n := range all {
			n.close()
		}
	})
}

// The list is made once for each change, and at most once in a second.
func TestModelsAreMadeOnce(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		n := w.join(chunked("answer"))
		first := w.relay.ModelList()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if &w.relay.ModelList()[0] != &first[0] {
					t.Error("the list was made again without a change")
				}
			})
		}
		all.Wait()
		other := w.join(chunked("answer"))
		if &w.relay.ModelList()[0] != &first[0] {
			t.Error("the list was made twice in a second")
		}
		time.Sleep(time.Second)
		if &w.relay.ModelList()[0] == &first[0] {
			t.Error("a change was never seen")
		}
		other.close()
		n.close()
		synctest.Wait()
		time.Sleep(time.Second)
		if ids, _, _ := w.models(); len(ids) != 0 {
			t.Errorf("with no node: %v", ids)
		}
	})
}

// Asking costs next to nothing, however many models there are.
func TestModelsCost(t *testing.T) {
	test(t, relay.Config{Log: discard}, func(w *world) {
		all := w.many(20, func(node, i int) string { return fmt.Sprintf("%d/%d/%s", node, i, strings.Repeat("x", 200)) })
		w.relay.ModelList()
		if n := testing.AllocsPerRun(20, func() { w.relay.ModelList() }); n > 0 {
			t.Errorf("%v allocations for a list that is there", n)
		}
		for _, n := range all {
			n.close()
		}
	})
}
