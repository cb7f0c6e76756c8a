package ohttp_test

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"token.place/ohttp"
)

func newKeys(t testing.TB, cfg ohttp.KeysConfig) *ohttp.Keys {
	t.Helper()
	keys, err := ohttp.NewKeys(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func publicKey(t testing.TB, keys *ohttp.Keys, kem ohttp.KEM) *ohttp.PublicKey {
	t.Helper()
	key, err := ohttp.ParsePublicKey(keys.Public(), kem)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// opens reports whether a fresh request to key opens.
func opens(t testing.TB, keys *ohttp.Keys, key *ohttp.PublicKey) bool {
	t.Helper()
	s, err := ohttp.SealRequest(key, ohttp.Chunked, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ohttp.OpenRequest(keys, ohttp.Chunked, s.Bytes)
	return err == nil
}

func TestPublicKeys(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	configs, err := ohttp.ParseKeyConfigs(keys.Public())
	if err != nil {
		t.Fatal(err)
	}
	if len(configs) != 2 || configs[0].KEM != ohttp.XWing || configs[1].KEM != ohttp.X25519 {
		t.Fatalf("published %+v", configs)
	}
	if configs[0].ID == configs[1].ID {
		t.Error("two keys share an id")
	}
	again, err := ohttp.MarshalKeyConfigs(configs)
	if err != nil || !bytes.Equal(again, keys.Public()) {
		t.Errorf("configurations do not survive a round trip: %v", err)
	}
	keys.Public()[0] ^= 1
	if !bytes.Equal(again, keys.Public()) {
		t.Error("Public gives away its own memory")
	}
	if _, err := ohttp.NewKeys(ohttp.KeysConfig{Life: -1}); err == nil {
		t.Error("a negative life is accepted")
	}
}

func TestParseKeyConfigs(t *testing.T) {
	x25519 := append([]byte{9, 0x00, 0x20}, bytes.Repeat([]byte{1}, 32)...)
	suites := []byte{0, 8, 0, 1, 0, 1, 0, 9, 0, 9}
	list := func(configs ...[]byte) (b []byte) {
		for _, c := range configs {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(c))), c...)
		}
		return b
	}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	good := cat(x25519, suites)
	foreign := []byte{1, 0x12, 0x34, 9, 9, 9}
	for _, tc := range []struct {
		name string
		in   []byte
		want int // configurations; -1 for an error
	}{
		{"one", list(good), 1},
		{"unknown suite is left out", list(good), 1},
		{"unknown KEM is left out", list(foreign, good, foreign), 1},
		{"only unknown", list(foreign), 0},
		{"only unknown suites", list(cat(x25519, []byte{0, 4, 0, 2, 0, 1})), 0},
		{"empty", nil, -1},
		{"trailing octet", append(list(good), 0), -1},
		{"truncated", list(good)[:20], -1},
		{"empty configuration", list(nil), -1},
		{"no suites", list(cat(x25519, []byte{0, 0})), -1},
		{"suites of 6 octets", list(cat(x25519, []byte{0, 6, 0, 1, 0, 1, 0, 1})), -1},
		{"octets after the suites", list(cat(good, []byte{0})), -1},
		{"suites cut short", list(good[:len(good)-4]), -1},
		{"key cut short", list(x25519[:20]), -1},
		{"damage after a good one", list(good, x25519), -1},
		{"too large", bytes.Repeat(list(good), 2000), -1},
	} {
		configs, err := ohttp.ParseKeyConfigs(tc.in)
		if err == nil && len(configs) != tc.want || err != nil && tc.want >= 0 {
			t.Errorf("%s: %d configurations, %v", tc.name, len(configs), err)
		}
		if tc.want == 1 && len(configs[0].Suites) != 1 {
			t.Errorf("%s: suites %v", tc.name, configs[0].Suites)
		}
	}
}

func TestMarshalKeyConfigs(t *testing.T) {
	ok := ohttp.KeyConfig{KEM: ohttp.X25519, PublicKey: make([]byte, 32), Suites: ohttp.Suites()}
	for name, change := range map[string]func(*ohttp.KeyConfig){
		"unknown KEM":   func(c *ohttp.KeyConfig) { c.KEM = 0x10 },
		"short key":     func(c *ohttp.KeyConfig) { c.PublicKey = c.PublicKey[1:] },
		"no suites":     func(c *ohttp.KeyConfig) { c.Suites = nil },
		"unknown suite": func(c *ohttp.KeyConfig) { c.Suites = []ohttp.Suite{{KDF: 2, AEAD: 1}} },
	} {
		c := ok
		change(&c)
		if _, err := ohttp.MarshalKeyConfigs([]ohttp.KeyConfig{c}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ohttp.MarshalKeyConfigs(nil); err == nil {
		t.Error("an empty list is accepted")
	}
}

func TestParsePublicKey(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	configs, _ := ohttp.ParseKeyConfigs(keys.Public())
	weak, err := ohttp.MarshalKeyConfigs(configs[1:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ohttp.ParsePublicKey(weak, ohttp.XWing); err == nil {
		t.Error("settled for another KEM")
	}
	if _, err := ohttp.ParsePublicKey(weak, ohttp.X25519); err != nil {
		t.Error(err)
	}
	bad := configs[0]
	bad.PublicKey = bytes.Repeat([]byte{0xff}, len(bad.PublicKey)) // not reduced modulo q
	if _, err := ohttp.NewPublicKey(bad); err == nil {
		t.Error("an invalid ML-KEM key is accepted")
	}
	if _, err := ohttp.NewPublicKey(ohttp.KeyConfig{KEM: 0x10}); err == nil {
		t.Error("an unknown KEM is accepted")
	}
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeys(t, ohttp.KeysConfig{Life: time.Hour, Overlap: 10 * time.Minute})
		if want := time.Now().Add(70 * time.Minute); !keys.NotAfter().Equal(want) {
			t.Errorf("NotAfter is %v, want %v", keys.NotAfter(), want)
		}
		first := publicKey(t, keys, ohttp.XWing)
		time.Sleep(time.Hour)
		if err := keys.Rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
		second := publicKey(t, keys, ohttp.XWing)
		if !opens(t, keys, first) || !opens(t, keys, second) {
			t.Error("a key does not open during the overlap")
		}
		time.Sleep(10 * time.Minute)
		if opens(t, keys, first) {
			t.Error("a key opens after the overlap")
		}
		select {
		case <-keys.Wanted():
			t.Error("a rotation is wanted because a replaced key ran out")
		default:
		}
		if !opens(t, keys, second) {
			t.Error("the published key stopped with the old one")
		}
		if err := keys.Rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
		if n := keys.Live(); n != 4 {
			t.Errorf("%d keys alive, want 4", n)
		}
		// Nobody rotates any more: the keys end nevertheless.
		third := publicKey(t, keys, ohttp.XWing)
		time.Sleep(70 * time.Minute)
		if opens(t, keys, third) {
			t.Error("a key opens past its end")
		}
		select {
		case <-keys.Wanted():
		default:
			t.Error("no rotation wanted after a published key ran out")
		}
		keys.Close()
		if keys.Live() != 0 {
			t.Error("keys survive Close")
		}
	})
}

func TestEarlyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeys(t, ohttp.KeysConfig{Life: time.Hour, Overlap: 10 * time.Minute})
		first := publicKey(t, keys, ohttp.XWing)
		if err := keys.Rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Minute - time.Second)
		if !opens(t, keys, first) {
			t.Error("a key does not open during the overlap")
		}
		time.Sleep(time.Second)
		if opens(t, keys, first) {
			t.Error("a replaced key outlives the overlap")
		}
	})
}

func TestKeyIDs(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	now := time.Now()
	var last [2]byte
	for i := range 300 {
		configs, err := ohttp.ParseKeyConfigs(keys.Public())
		if err != nil {
			t.Fatal(err)
		}
		ids := [2]byte{configs[0].ID, configs[1].ID}
		if ids[0] == ids[1] || i > 0 && (ids[0] == last[0] || ids[1] == last[1]) {
			t.Fatalf("rotation %d: ids %v after %v", i, ids, last)
		}
		last = ids
		if err := keys.Rotate(now); err != nil {
			t.Fatal(err)
		}
	}
	if n := keys.Live(); n > 128 {
		t.Errorf("%d keys alive", n)
	}
}

func TestReplayMemory(t *testing.T) {
	const limit = 10
	keys := newKeys(t, ohttp.KeysConfig{Replays: limit})
	key := publicKey(t, keys, ohttp.XWing)
	other := publicKey(t, keys, ohttp.X25519)
	for i := range limit {
		s, err := ohttp.SealRequest(key, ohttp.Chunked, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ohttp.OpenRequest(keys, ohttp.Chunked, s.Bytes); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if _, err := ohttp.OpenRequest(keys, ohttp.Chunked, s.Bytes); err == nil {
			t.Fatalf("request %d opens twice", i)
		}
	}
	if n := keys.Seen(); n != limit {
		t.Errorf("%d requests remembered, want %d", n, limit)
	}
	if opens(t, keys, key) {
		t.Error("a key opens past the size of its memory")
	}
	select {
	case <-keys.Wanted():
	default:
		t.Error("no rotation wanted though a key is full")
	}
	if !opens(t, keys, other) {
		t.Error("a full key stops another")
	}
	if err := keys.Rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := keys.Live(); n != 3 {
		t.Errorf("%d keys alive after rotation, want 3: the full one is of no use", n)
	}
	if !opens(t, keys, publicKey(t, keys, ohttp.XWing)) {
		t.Error("a fresh key does not open")
	}
}

// However many sets are made, and however evenly they are filled, the memory of
// all together is bounded; what is published opens all the same.
func TestReplayMemoryOfAllKeys(t *testing.T) {
	const limit = 10
	keys := newKeys(t, ohttp.KeysConfig{Replays: limit})
	now := time.Now()
	var sets [][2]*ohttp.PublicKey
	for i := range 20 {
		set := [2]*ohttp.PublicKey{publicKey(t, keys, ohttp.XWing), publicKey(t, keys, ohttp.X25519)}
		sets = append(sets, set)
		for _, key := range set {
			for range limit - 1 {
				if !opens(t, keys, key) {
					t.Fatalf("set %d: a published key does not open", i)
				}
				if n := keys.Seen(); n > 2*limit {
					t.Fatalf("set %d: %d requests remembered", i, n)
				}
			}
		}
		if err := keys.Rotate(now); err != nil {
			t.Fatal(err)
		}
	}
	if n := keys.Live(); n != 4 {
		t.Errorf("%d keys alive, want those of the newest two sets", n)
	}
	if opens(t, keys, sets[18][0]) {
		t.Error("a set whose memory is gone still opens")
	}
	// Whoever fills the memory by an older key ends that key and no other.
	for range limit {
		opens(t, keys, sets[19][1])
		opens(t, keys, publicKey(t, keys, ohttp.X25519))
	}
	if opens(t, keys, sets[19][0]) || !opens(t, keys, publicKey(t, keys, ohttp.XWing)) || keys.Seen() > 2*limit {
		t.Errorf("%d keys alive, %d requests remembered", keys.Live(), keys.Seen())
	}
}

// Noise that does not open must not fill the memory.
func TestReplayMemoryOnlyForOpened(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	key := publicKey(t, keys, ohttp.X25519)
	s, err := ohttp.SealRequest(key, ohttp.Chunked, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Clone(s.Bytes)
	broken[len(broken)-1] ^= 1
	if _, err := ohttp.OpenRequest(keys, ohttp.Chunked, broken); err == nil {
		t.Fatal("a broken request opens")
	}
	if n := keys.Seen(); n != 0 {
		t.Errorf("%d requests remembered", n)
	}
	if _, err := ohttp.OpenRequest(keys, ohttp.Chunked, s.Bytes); err != nil {
		t.Errorf("the whole request is taken for a replay of the broken one: %v", err)
	}
}

func TestReplayRace(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	s, err := ohttp.SealRequest(publicKey(t, keys, ohttp.XWing), ohttp.Whole, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	opened := 0
	for range 20 {
		wg.Go(func() {
			if _, err := ohttp.OpenRequest(keys, ohttp.Whole, s.Bytes); err == nil {
				mu.Lock()
				defer mu.Unlock()
				opened++
			}
		})
	}
	wg.Go(func() {
		if err := keys.Rotate(time.Now()); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	if opened != 1 {
		t.Errorf("opened %d times", opened)
	}
}
