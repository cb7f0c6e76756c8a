package ohttp_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"token.place/ohttp"
)

func FuzzParseKeyConfigs(f *testing.F) {
	f.Add([]byte{0, 6, 1, 0x12, 0x34, 9, 9, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		configs, err := ohttp.ParseKeyConfigs(b)
		if err != nil || len(configs) == 0 {
			return
		}
		for _, c := range configs {
			if len(c.Suites) > 3 {
				return // repeated suites, which we do not write
			}
		}
		again, err := ohttp.MarshalKeyConfigs(configs)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > len(b) {
			t.Fatalf("%x becomes %x", b, again)
		}
		if _, err := ohttp.ParseKeyConfigs(again); err != nil {
			t.Fatal(err)
		}
	})
}

// fuzzBinary checks that a message that decodes survives encoding and decoding.
func fuzzBinary(f *testing.F, request bool) {
	var vs binaryVectors
	loadVectors(f, "bhttp.json", &vs)
	for _, v := range vs.Vectors {
		f.Add([]byte(v.Message))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ohttp.ReadMessage(b, request)
		if err != nil {
			if errors.Is(err, io.EOF) {
				t.Fatal("an error that passes for the end")
			}
			return
		}
		again, err := ohttp.ReadMessage(m.Append(nil), request)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if !sameMessage(m, again) {
			t.Fatalf("%+v becomes %+v", m, again)
		}
	})
}

func FuzzBinaryRequest(f *testing.F)  { fuzzBinary(f, true) }
func FuzzBinaryResponse(f *testing.F) { fuzzBinary(f, false) }

// FuzzOpenRequest gives a Handler a request whose outside, or with sealed whose
// inside, is anything.
func FuzzOpenRequest(f *testing.F) {
	f.Add(true, true, message(nil).Append(nil))
	f.Add(true, false, message(nil).Append(nil))
	f.Add(false, true, []byte{1, 0, 0x20, 0, 1, 0, 1})
	keys := newKeys(f, ohttp.KeysConfig{Replays: 1 << 40})
	key := publicKey(f, keys, ohttp.X25519)
	h := &ohttp.Handler{Keys: keys, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != "" || r.RemoteAddr != "" || r.Header["Host"] != nil || r.Header["Connection"] != nil {
			panic("the request carries what it must not")
		}
		io.Copy(w, r.Body)
	}), OnPanic: func(stack []byte) { panic(string(stack)) }}
	f.Fuzz(func(t *testing.T, sealed, chunked bool, b []byte) {
		format, media := ohttp.Whole, mediaWhole
		if chunked {
			format, media = ohttp.Chunked, mediaChunked
		}
		if sealed {
			pieces := [][]byte{b}
			if chunked {
				pieces = nil
				for ; len(b) > ohttp.MaxChunk; b = b[ohttp.MaxChunk:] {
					pieces = append(pieces, b[:ohttp.MaxChunk])
				}
				pieces = append(pieces, b)
			}
			s, err := ohttp.SealRequest(key, format, pieces...)
			if err != nil {
				t.Fatal(err)
			}
			b = s.Bytes
		}
		r, _ := http.NewRequest("POST", "/", bytes.NewReader(b))
		r.Header.Set("Content-Type", media)
		w := &buffered{header: make(http.Header), status: 200}
		h.ServeHTTP(w, r)
		if w.status == 200 != (w.header.Get("Content-Type") != "application/problem+json") {
			t.Fatalf("status %d, header %v", w.status, w.header)
		}
	})
}

// FuzzOpenResponse gives a Transport an answer that is anything behind a seal, and
// anything instead of one.
func FuzzOpenResponse(f *testing.F) {
	f.Add(true, []byte{3, 0x40, 0xc8, 0, 0, 0})
	f.Add(true, (&ohttp.Message{Status: 200, Content: []byte("x")}).Append(nil))
	f.Add(false, []byte("anything"))
	keys := newKeys(f, ohttp.KeysConfig{Replays: 1 << 40})
	tr := &ohttp.Transport{URL: "http://relay/", Key: publicKey(f, keys, ohttp.X25519)}
	f.Fuzz(func(t *testing.T, sealed bool, b []byte) {
		tr := *tr
		tr.Base = roundTripFunc(func(r *http.Request) (*http.Response, error) {
			request, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil {
				return nil, err
			}
			if sealed {
				o, err := ohttp.OpenRequest(keys, ohttp.Chunked, request)
				if err != nil {
					t.Fatal(err)
				}
				pieces := [][]byte{}
				for ; len(b) > ohttp.MaxChunk; b = b[ohttp.MaxChunk:] {
					pieces = append(pieces, b[:ohttp.MaxChunk])
				}
				if b, err = o.SealResponse(make([]byte, 32), append(pieces, b)...); err != nil {
					t.Fatal(err)
				}
			}
			header := http.Header{"Content-Type": {"message/ohttp-chunked-res"}}
			return &http.Response{StatusCode: 200, Header: header, Body: io.NopCloser(bytes.NewReader(b))}, nil
		})
		resp, err := tr.RoundTrip(newRequest(t, "POST", nil))
		if err != nil {
			return
		}
		defer resp.Body.Close()
		if _, err = io.ReadAll(resp.Body); err == nil && !sealed {
			t.Fatal("an answer that was not sealed is whole")
		}
		if resp.StatusCode < 200 || resp.StatusCode > 599 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	})
}

func FuzzUnpad(f *testing.F) {
	var vs paddedVectors
	loadVectors(f, "ohttp-padded.json", &vs)
	for _, v := range vs.Vectors {
		f.Add([]byte(v.Body), 3)
	}
	for _, v := range vs.Invalid {
		f.Add([]byte(v.Body), 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, padding int) {
		if got, err := io.ReadAll(ohttp.Unpad(bytes.NewReader(b))); err == nil && len(got) > len(b) {
			t.Fatalf("%x becomes %x", b, got)
		}
		if len(b) > 60_000 || padding < 0 || padding > 16_000 {
			return
		}
		frames := ohttp.AppendFrame(ohttp.AppendFrame(nil, nil, padding), b, padding)
		if got, err := io.ReadAll(ohttp.Unpad(bytes.NewReader(frames))); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%x becomes %x, %v", b, got, err)
		}
	})
}

// TestSeedCorpora writes the seeds under testdata with -update: the vectors, so that
// a fuzzer run from there starts from messages that are valid.
func TestSeedCorpora(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	seed := func(target string, i int, lines string) {
		dir := filepath.Join("testdata", "fuzz", target)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "seed-"+strconv.Itoa(i))
		if err := os.WriteFile(name, []byte("go test fuzz v1\n"+lines), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	quote := func(b []byte) string { return "[]byte(" + strconv.Quote(string(b)) + ")\n" }
	var vs binaryVectors
	loadVectors(t, "bhttp.json", &vs)
	for i, v := range vs.Vectors {
		if v.Request {
			seed("FuzzBinaryRequest", i, quote(v.Message))
			seed("FuzzOpenRequest", i, "bool(true)\nbool(true)\n"+quote(v.Message))
		} else {
			seed("FuzzBinaryResponse", i, quote(v.Message))
			seed("FuzzOpenResponse", i, "bool(true)\n"+quote(v.Message))
		}
	}
	for i, v := range vs.Invalid {
		if v.Request {
			seed("FuzzBinaryRequest", 100+i, quote(v.Message))
		} else {
			seed("FuzzBinaryResponse", 100+i, quote(v.Message))
		}
	}
	for _, file := range []string{"ohttp.json", "ohttp-chunked.json"} {
		var sealed sealedVectors
		loadVectors(t, file, &sealed)
		for i, v := range sealed.Vectors {
			list := append([]byte{byte(len(v.KeyConfig) >> 8), byte(len(v.KeyConfig))}, v.KeyConfig...)
			if i < 2 {
				seed("FuzzParseKeyConfigs", i, quote(list))
				seed("FuzzOpenRequest", 100+i, "bool(false)\nbool("+strconv.FormatBool(file != "ohttp.json")+")\n"+quote(v.SealedRequest))
			}
		}
	}
	var padded paddedVectors
	loadVectors(t, "ohttp-padded.json", &padded)
	for i, v := range padded.Vectors {
		seed("FuzzUnpad", i, quote(v.Body)+"int(5)\n")
	}
}
