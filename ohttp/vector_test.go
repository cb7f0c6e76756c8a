package ohttp_test

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"token.place/ohttp"
)

var update = flag.Bool("update", false, "write our own vectors anew")

// hexBytes is octets as hexadecimal in JSON.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// sealedVector is one exchange; see spec/vectors/README.md.
type sealedVector struct {
	Name           string     `json:"name"`
	Source         string     `json:"source"`
	PrivateKey     hexBytes   `json:"private_key"`
	KeyConfig      hexBytes   `json:"key_config"`
	RequestChunks  []hexBytes `json:"request_chunks"`
	SealedRequest  hexBytes   `json:"sealed_request"`
	ResponseNonce  hexBytes   `json:"response_nonce"`
	ResponseChunks []hexBytes `json:"response_chunks"`
	SealedResponse hexBytes   `json:"sealed_response"`
}

type sealedVectors struct {
	Format  string         `json:"format"`
	Vectors []sealedVector `json:"vectors"`
}

func vectorPath(name string) string { return filepath.Join("..", "spec", "vectors", name) }

func loadVectors(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(vectorPath(name))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestSealedVectors(t *testing.T) {
	for file, format := range map[string]ohttp.Format{"ohttp.json": ohttp.Whole, "ohttp-chunked.json": ohttp.Chunked} {
		if *update {
			updateVectors(t, file, format)
		}
		var vs sealedVectors
		loadVectors(t, file, &vs)
		for _, v := range vs.Vectors {
			t.Run(file+"/"+v.Name, func(t *testing.T) { checkSealed(t, v, format) })
		}
	}
}

func checkSealed(t *testing.T, v sealedVector, format ohttp.Format) {
	config := oneConfig(t, v.KeyConfig)
	keys, err := ohttp.KeysOf(config.ID, config.KEM, v.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	published, err := ohttp.ParseKeyConfigs(keys.Public())
	if err != nil || !bytes.Equal(published[0].PublicKey, config.PublicKey) {
		t.Fatalf("public key does not match the private one (%v)", err)
	}
	o, err := ohttp.OpenRequest(keys, format, v.SealedRequest)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(o.Plain)
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(raw(v.RequestChunks)...); !bytes.Equal(plain, want) {
		t.Errorf("request opens as %x, want %x", plain, want)
	}
	sealed, err := o.SealResponse(v.ResponseNonce, raw(v.ResponseChunks)...)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sealed, v.SealedResponse) {
		t.Errorf("response seals as\n%x, want\n%x", sealed, v.SealedResponse)
	}
}

func raw(chunks []hexBytes) (out [][]byte) {
	for _, c := range chunks {
		out = append(out, c)
	}
	return out
}

// oneConfig parses a configuration that has no length before it.
func oneConfig(t testing.TB, b []byte) ohttp.KeyConfig {
	t.Helper()
	list := append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)
	configs, err := ohttp.ParseKeyConfigs(list)
	if err != nil || len(configs) != 1 {
		t.Fatalf("key configuration: %d, %v", len(configs), err)
	}
	return configs[0]
}

// updateVectors replaces the vectors that are our own: XWing with each AEAD.
func updateVectors(t *testing.T, file string, format ohttp.Format) {
	var vs sealedVectors
	loadVectors(t, file, &vs)
	vs.Vectors = slices.DeleteFunc(vs.Vectors, func(v sealedVector) bool { return v.Source == "token.place" })
	request := (&ohttp.Message{
		Request: true, Known: true, Method: "POST", Scheme: "https", Authority: "node.example", Path: "/v1/completions",
		Fields: []ohttp.Field{ohttp.NewField("content-type", "application/json")}, Content: []byte(`{"model":"pocket"}`),
	}).Append(nil)
	response := (&ohttp.Message{
		Status: 200, Content: []byte("a stream of"),
		Trailer: []ohttp.Field{ohttp.NewField("x-end", "water")},
	}).Append(nil)
	for _, suite := range ohttp.Suites() {
		vs.Vectors = append(vs.Vectors, newVector(t, format, suite, request, response))
	}
	b, err := json.MarshalIndent(vs, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorPath(file), append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newVector(t *testing.T, format ohttp.Format, suite ohttp.Suite, request, response []byte) sealedVector {
	private := make([]byte, 32)
	rand.Read(private)
	kem, _ := hpke.NewKEM(uint16(ohttp.XWing))
	key, err := kem.NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := ohttp.KeyConfig{ID: 7, KEM: ohttp.XWing, PublicKey: key.PublicKey().Bytes(), Suites: []ohttp.Suite{suite}}
	list, err := ohttp.MarshalKeyConfigs([]ohttp.KeyConfig{config})
	if err != nil {
		t.Fatal(err)
	}
	public, err := ohttp.NewPublicKey(config)
	if err != nil {
		t.Fatal(err)
	}
	split := func(b []byte) [][]byte {
		if format == ohttp.Whole {
			return [][]byte{b}
		}
		return [][]byte{b[:1], b[1:9], b[9:], nil}
	}
	keys, err := ohttp.KeysOf(config.ID, config.KEM, private)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := ohttp.SealRequest(public, format, split(request)...)
	if err != nil {
		t.Fatal(err)
	}
	o, err := ohttp.OpenRequest(keys, format, sealed.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, max(12, map[uint16]int{1: 16, 2: 32, 3: 32}[suite.AEAD]))
	rand.Read(nonce)
	answer, err := o.SealResponse(nonce, split(response)...)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := sealed.OpenResponse(answer); err != nil || !bytes.Equal(plain, response) {
		t.Fatalf("answer opens as %x, %v", plain, err)
	}
	aead := map[uint16]string{1: "AES-128-GCM", 2: "AES-256-GCM", 3: "ChaCha20-Poly1305"}[suite.AEAD]
	return sealedVector{
		"ML-KEM-768 with X25519, " + aead, "token.place", private, list[2:],
		hexed(split(request)), sealed.Bytes, nonce, hexed(split(response)), answer,
	}
}

func hexed(b [][]byte) (out []hexBytes) {
	for _, c := range b {
		out = append(out, append(hexBytes{}, c...))
	}
	return out
}

type binaryVectors struct {
	Vectors []struct {
		Name          string      `json:"name"`
		Source        string      `json:"source"`
		Message       hexBytes    `json:"message"`
		Request       bool        `json:"request"`
		KnownLength   bool        `json:"known_length"`
		Padding       int         `json:"padding"`
		Informational int         `json:"informational"`
		Reencodes     *bool       `json:"reencodes"`
		Method        string      `json:"method"`
		Scheme        string      `json:"scheme"`
		Authority     string      `json:"authority"`
		Path          string      `json:"path"`
		Status        int         `json:"status"`
		Fields        [][2]string `json:"fields"`
		Content       hexBytes    `json:"content"`
		Trailer       [][2]string `json:"trailer"`
	} `json:"vectors"`
	Invalid []struct {
		Name    string   `json:"name"`
		Request bool     `json:"request"`
		Message hexBytes `json:"message"`
	} `json:"invalid"`
}

func fieldList(pairs [][2]string) (out []ohttp.Field) {
	for _, p := range pairs {
		out = append(out, ohttp.NewField(p[0], p[1]))
	}
	return out
}

func TestBinaryVectors(t *testing.T) {
	var vs binaryVectors
	loadVectors(t, "bhttp.json", &vs)
	for _, v := range vs.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			want := &ohttp.Message{
				Request: v.Request, Known: v.KnownLength, Method: v.Method, Scheme: v.Scheme, Authority: v.Authority,
				Path: v.Path, Status: v.Status, Fields: fieldList(v.Fields), Content: v.Content, Trailer: fieldList(v.Trailer),
			}
			got, err := ohttp.ReadMessage(v.Message, v.Request)
			if err != nil {
				t.Fatal(err)
			}
			if !sameMessage(got, want) {
				t.Errorf("decodes as\n%+v, want\n%+v", got, want)
			}
			if v.Reencodes != nil && !*v.Reencodes {
				return
			}
			// What we write is never truncated and has no informational responses.
			message := append(slices.Clone(v.Message[:1]), v.Message[max(v.Informational, 1):]...)
			encoded := want.Append(nil)
			switch {
			case v.Padding >= 0:
				encoded = append(encoded, make([]byte, v.Padding)...)
			case !bytes.Equal(encoded[len(encoded)+v.Padding:], make([]byte, -v.Padding)):
				t.Errorf("encoding ends in %x", encoded[len(encoded)+v.Padding:])
			default:
				encoded = encoded[:len(encoded)+v.Padding]
			}
			if !bytes.Equal(encoded, message) {
				t.Errorf("encodes as\n%x, want\n%x", encoded, message)
			}
		})
	}
	for _, v := range vs.Invalid {
		t.Run("invalid/"+v.Name, func(t *testing.T) {
			if m, err := ohttp.ReadMessage(v.Message, v.Request); err == nil {
				t.Errorf("decodes as %+v", m)
			} else if errors.Is(err, io.EOF) {
				t.Errorf("error is %v, as if all were well", err)
			}
		})
	}
}

func sameMessage(a, b *ohttp.Message) bool {
	x, y := *a, *b
	same := slices.Equal(x.Fields, y.Fields) && slices.Equal(x.Trailer, y.Trailer) && bytes.Equal(x.Content, y.Content)
	x.Fields, x.Trailer, x.Content = nil, nil, nil
	y.Fields, y.Trailer, y.Content = nil, nil, nil
	return same && x.Method == y.Method && x.Scheme == y.Scheme && x.Authority == y.Authority &&
		x.Path == y.Path && x.Status == y.Status && x.Known == y.Known && x.Request == y.Request
}
