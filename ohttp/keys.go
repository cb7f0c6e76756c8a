package ohttp

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxSets bounds the key sets that are alive at once, whatever the rotation: two
// key ids each, so half of the 256 ids always stay free.
const maxSets = 64

var (
	errUnknownKey = errors.New("no such key")
	errReplay     = errors.New("request seen before")
)

// KeysConfig says how long the keys of a node live. The zero value is the
// protocol's default.
type KeysConfig struct {
	// Life is how long a key set is published before Rotate should replace it.
	// Default 30 minutes.
	Life time.Duration
	// Overlap is how long a replaced key set still opens requests. Default 30
	// minutes. A set never opens anything past Life+Overlap after it was made,
	// rotated or not.
	Overlap time.Duration
	// Replays is how many requests one key opens at most, since each has to be
	// remembered while the key lives: about 40 octets of memory each. Default
	// 524288. Past it the key is refused like an unknown one and Wanted reports.
	// All live keys together remember at most twice as many, which is what those
	// that are published can need: for more, the oldest set is destroyed early.
	Replays int
}

// Keys is the set of private keys of one node: one XWing and one X25519 key that
// are published, and older ones that still open. It also remembers every request
// that they opened, so that none is opened twice.
//
// Keys live in memory only. It is safe for concurrent use.
type Keys struct {
	cfg    KeysConfig
	wanted chan struct{}

	mu       sync.Mutex // guards what follows, and every privateKey
	live     map[uint8]*privateKey
	sets     [][]*privateKey // oldest first; the last one is published
	public   []byte
	notAfter time.Time
	next     uint8
	seen     int // requests remembered, by all live keys
}

// privateKey is one live key and its replay memory.
type privateKey struct {
	id       uint8
	key      hpke.PrivateKey
	notAfter time.Time
	seen     map[[16]byte]struct{}
}

// NewKeys makes a first key set, valid from now.
func NewKeys(cfg KeysConfig) (*Keys, error) {
	if cfg.Life < 0 || cfg.Overlap < 0 || cfg.Replays < 0 {
		return nil, errors.New("make keys: negative setting")
	}
	if cfg.Life == 0 {
		cfg.Life = 30 * time.Minute
	}
	if cfg.Overlap == 0 {
		cfg.Overlap = 30 * time.Minute
	}
	if cfg.Replays == 0 {
		cfg.Replays = 1 << 19
	}
	// Ids start anywhere, so that after a restart a request to a key of the last
	// run most likely meets an unknown id rather than a key that fails to open it.
	var first [1]byte
	rand.Read(first[:])
	k := &Keys{cfg: cfg, wanted: make(chan struct{}, 1), live: make(map[uint8]*privateKey), next: first[0]}
	if err := k.Rotate(time.Now()); err != nil {
		return nil, err
	}
	return k, nil
}

// Rotate makes and publishes a new key set. The one it replaces opens requests
// for another Overlap; sets past their end are destroyed, and so are keys whose
// replay memory is full, which open nothing any more.
//
// Destroying a key means dropping every reference to it and to its memory of
// requests. Go may have copied a key while it was in use and does not wipe freed
// memory, and crypto/hpke gives no access to the octets: a core dump taken later
// may still hold them until the memory is used again.
func (k *Keys) Rotate(now time.Time) error {
	xwing, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	x25519, err := newX25519()
	if err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	end := now.Add(k.cfg.Overlap)
	for _, set := range k.sets {
		for _, p := range set {
			if end.Before(p.notAfter) {
				p.notAfter = end
			}
		}
	}
	k.expire(now)
	if len(k.sets) >= maxSets {
		k.destroy(k.sets[0])
		k.sets = slices.Delete(k.sets, 0, 1)
	}
	notAfter := now.Add(k.cfg.Life + k.cfg.Overlap)
	// XWing first: a client that takes the first key it knows takes that one.
	set := []*privateKey{k.add(xwing, notAfter), k.add(x25519, notAfter)}
	public, err := MarshalKeyConfigs([]KeyConfig{set[0].config(), set[1].config()})
	if err != nil {
		return fmt.Errorf("rotate keys: internal error: %w", err)
	}
	k.sets, k.public, k.notAfter = append(k.sets, set), public, notAfter
	select {
	case <-k.wanted: // what was asked for has just been done
	default:
	}
	return nil
}

// newX25519 generates an X25519 key for HPKE.
func newX25519() (hpke.PrivateKey, error) {
	kem, err := hpke.NewKEM(uint16(X25519))
	if err != nil {
		return nil, err
	}
	return kem.GenerateKey()
}

// add gives a key the next free id. The caller holds k.mu.
func (k *Keys) add(key hpke.PrivateKey, notAfter time.Time) *privateKey {
	for k.live[k.next] != nil {
		k.next++
	}
	p := &privateKey{k.next, key, notAfter, make(map[[16]byte]struct{})}
	k.live[k.next] = p
	k.next++
	return p
}

// expire destroys the keys that are past their end or full. The caller holds k.mu.
func (k *Keys) expire(now time.Time) {
	k.sets = slices.DeleteFunc(k.sets, func(set []*privateKey) bool {
		gone := 0
		for i, p := range set {
			if p.key == nil || !now.Before(p.notAfter) || len(p.seen) >= k.cfg.Replays {
				k.destroy(set[i : i+1])
				gone++
			}
		}
		return gone == len(set)
	})
}

// destroy forgets keys. The caller holds k.mu.
func (k *Keys) destroy(set []*privateKey) {
	for _, p := range set {
		if k.live[p.id] == p {
			delete(k.live, p.id)
		}
		k.seen -= len(p.seen)
		p.key, p.seen = nil, nil
	}
}

// config is the key's public half.
func (p *privateKey) config() KeyConfig {
	return KeyConfig{p.id, KEM(p.key.KEM().ID()), p.key.PublicKey().Bytes(), suites}
}

// Public returns the published key configurations, XWing first, as
// application/ohttp-keys. The caller may keep and change the slice.
func (k *Keys) Public() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.public)
}

// NotAfter returns when the published keys stop opening requests if nobody
// rotates them: the latest end that a descriptor with these keys may promise.
func (k *Keys) NotAfter() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.notAfter
}

// Life returns how long a key set should be published before Rotate.
func (k *Keys) Life() time.Duration { return k.cfg.Life }

// Wanted reports when a rotation is wanted ahead of time because a published key
// refuses requests from now on: its replay memory is full, or it outlived its end.
// The channel holds one report and is never closed.
func (k *Keys) Wanted() <-chan struct{} { return k.wanted }

// Close destroys all keys. Exchanges that are open go on; no new one opens.
func (k *Keys) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, set := range k.sets {
		k.destroy(set)
	}
	k.sets = nil
}

// want asks for a rotation because p is of no more use, if p is published: that an
// older key ends is in the order of things. It never blocks. The caller holds k.mu.
func (k *Keys) want(p *privateKey) {
	if len(k.sets) == 0 || !slices.Contains(k.sets[len(k.sets)-1], p) {
		return
	}
	select {
	case k.wanted <- struct{}{}:
	default:
	}
}

// find returns the key that a request's header names, errUnknownKey if there is
// none that we would open it with, or errReplay if enc was remembered. Asking
// before opening spares the work for a replay; remember decides.
func (k *Keys) find(h header, enc []byte, now time.Time) (hpke.PrivateKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.live[h[0]]
	switch {
	case p == nil || KEM(p.key.KEM().ID()) != h.kem() || !slices.Contains(suites, h.suite()):
		return nil, errUnknownKey
	case !now.Before(p.notAfter):
		k.destroy([]*privateKey{p})
		k.want(p)
		return nil, errUnknownKey
	case len(p.seen) >= k.cfg.Replays:
		return nil, errUnknownKey
	}
	if _, seen := p.seen[digest(enc)]; seen {
		return nil, errReplay
	}
	return p.key, nil
}

// remember records that key opened the request with this enc. Of any number of
// calls with one enc, one succeeds while the key lives. Only requests that opened
// are remembered, so that nobody without the key can fill the memory with noise.
func (k *Keys) remember(h header, key hpke.PrivateKey, enc []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.live[h[0]]
	switch {
	case p == nil || p.key != key:
		return errUnknownKey
	case len(p.seen) >= k.cfg.Replays:
		return errUnknownKey
	}
	d := digest(enc)
	if _, seen := p.seen[d]; seen {
		return errReplay
	}
	for k.seen >= 2*k.cfg.Replays && len(k.sets) > 1 {
		k.destroy(k.sets[0])
		k.sets = slices.Delete(k.sets, 0, 1)
	}
	if p.key == nil { // it was of that set
		return errUnknownKey
	}
	p.seen[d] = struct{}{}
	k.seen++
	if len(p.seen) >= k.cfg.Replays {
		k.want(p)
	}
	return nil
}

// digest shortens enc for the replay memory. To make another request collide with
// a given one takes a second preimage of 128 bits, and would only get it refused.
func digest(enc []byte) [16]byte {
	sum := sha256.Sum256(enc)
	return [16]byte(sum[:])
}
