package openai_test

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"strings"
	"testing"

	"token.place/openai"
)

func TestPeek(t *testing.T) {
	for _, test := range []struct {
		name, body, model string
		stream            bool
	}{
		{"plain", `{"model":"pocket","stream":true,"messages":[]}`, "pocket", true},
		{"not a stream", `{"stream":false,"model":"a/b:7b"}`, "a/b:7b", false},
		{"null stream", `{"stream":null,"model":"m"}`, "m", false},
		{"null model", `{"model":null}`, "", false},
		{"no model", `{"messages":[{"model":"inner","stream":true}]}`, "", false},
		{"spaces", " \r\n\t{ \"model\" \t:\n \"m\" , \"x\" : [ 1 , 2 ] , \"stream\" : true } \n", "m", true},
		{"escaped key", `{"\u006dodel":"m\u00e9\"\\"}`, `mé"\`, false},
		{"nested", `{"tools":[{"model":"no","a":{"b":[[],{}]}}],"model":"yes","s":"\\\"}"}`, "yes", false},
		{"empty object", `{}`, "", false},
		{"empty body", ``, "", false},
		{"numbers", `{"a":-1.0e-7,"b":true,"c":null,"model":"m"}`, "m", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, contentType := range []string{"application/json", "", "application/x-www-form-urlencoded", "application/json; charset=utf-8"} {
				r, err := openai.Peek(contentType, []byte(test.body))
				if err != nil {
					t.Fatal(err)
				}
				if r.Model != test.model || r.Stream != test.stream {
					t.Errorf("got %q, stream %v", r.Model, r.Stream)
				}
			}
		})
	}
}

func TestPeekRefuses(t *testing.T) {
	deep := `{"model":"m","x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`
	for _, test := range []struct{ name, body, says string }{
		{"model twice", `{"model":"a","model":"b"}`, `"model" is there twice`},
		{"model twice, escaped", `{"model":"a","mod\u0065l":"b"}`, `"model" is there twice`},
		{"model in capitals", `{"model":"a","Model":"b"}`, `must be spelt "model"`},
		{"stream with a long s", "{\"\u017ftream\":true}", `must be spelt "stream"`},
		{"messages twice", `{"messages":[],"messages":[]}`, `"messages" is there twice`},
		{"model not a string", `{"model":7}`, `"model" must be a string`},
		{"model too long", `{"model":"` + strings.Repeat("m", 257) + `"}`, "at most 256 bytes"},
		{"model with a line end", `{"model":"a\nb"}`, "printable"},
		{"stream not a bool", `{"stream":"true"}`, `"stream" must be true or false`},
		{"array", `[1]`, "must be a JSON object"},
		{"cut off", `{"model":"m"`, "at its end, byte 12"},
		{"trailing bytes", `{"model":"m"}{}`, "byte 13"},
		{"two commas", `{"model":"m",,}`, "byte 13"},
		{"blanks", "  \n", "its end, byte 3"},
		{"byte order mark", "\uFEFF{}", "byte 0"},
		{"not UTF-8", "{\"model\":\"m\",\"a\":\"\xff\"}", "not valid UTF-8 at byte 18"},
		{"deep", deep, "deeper than 256 levels"},
		{"HTML", "<html>", "byte 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := openai.Peek("application/json", []byte(test.body))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want something with %q", err, test.says)
			}
		})
	}
}

func TestWithModel(t *testing.T) {
	// Everything that decoding and encoding again would change.
	const before = "{ \"temperature\": 1.0,\t\"top_p\":1e-7, \"z\":1, \"a\":2,\r\n\"unknown\":{\"é\\u00e9\":[1.50, 12345678901234567890]}, \"model\" :\t"
	const after = " , \"seed\":-0.0,\"logit_bias\":{\"50256\":-100.00},\"html\":\"<&>\" }\n"
	body := []byte(before + `"gpt-5"` + after)
	r, err := openai.Peek("application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.WithModel(body, `po"cket`); string(got) != before+`"po\"cket"`+after {
		t.Errorf("got %s", got)
	}
	if string(body) != before+`"gpt-5"`+after {
		t.Error("the body itself changed")
	}
	if got := r.WithModel(body, "a\nb"); !bytes.Equal(got, body) {
		t.Errorf("an invalid id was put in: %s", got)
	}
	none := []byte(`{"a":1}`)
	r, _ = openai.Peek("application/json", none)
	if got := r.WithModel(none, "m"); !bytes.Equal(got, none) {
		t.Errorf("without a model: got %s", got)
	}
}

// form returns a multipart body as the standard library writes it.
func form(t testing.TB, fields ...string) (contentType string, body []byte) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	f, err := w.CreateFormFile("file", "speech.wav")
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("RIFF\x00\xff\r\n--almost\r\n"))
	for i := 0; i < len(fields); i += 2 {
		if err := w.WriteField(fields[i], fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return w.FormDataContentType(), b.Bytes()
}

func TestPeekForm(t *testing.T) {
	contentType, body := form(t, "model", "whisper-1", "prompt", "", "stream", "true", "temperature", "0.0")
	r, err := openai.Peek(contentType, body)
	if err != nil {
		t.Fatal(err)
	}
	if r.Model != "whisper-1" || !r.Stream {
		t.Errorf("got %q, stream %v", r.Model, r.Stream)
	}
	want := bytes.Replace(body, []byte("whisper-1"), []byte("tiny"), 1)
	if got := r.WithModel(body, "tiny"); !bytes.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestPeekFormRefuses(t *testing.T) {
	contentType, good := form(t, "model", "m")
	typeTwice, twice := form(t, "model", "m", "model", "n")
	edit := func(old, new string) []byte {
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	manyFields := make([]string, 300)
	for i := range manyFields {
		manyFields[i] = "x"
	}
	typeMany, many := form(t, manyFields...)
	for _, test := range []struct {
		name, contentType string
		body              []byte
		says              string
	}{
		{"model twice", typeTwice, twice, "twice"},
		{"no boundary", "multipart/form-data", good, "needs a boundary"},
		{"other boundary", "multipart/form-data; boundary=x", good, "does not begin with its boundary"},
		{"preamble", contentType, append([]byte("hello\r\n"), good...), "does not begin"},
		{"cut off", contentType, good[:len(good)-3], "not followed by a line end"},
		{"cut off in a value", contentType, good[:len(good)-8], "without its closing boundary"},
		{"after the end", contentType, append(bytes.Clone(good), 'x'), "not followed by a line end"},
		{"model as a file", contentType, edit(`name="model"`, `name="model"; filename="m"`), "plain text"},
		{"model encoded", contentType, edit(`name="model"`, "name=\"model\"\r\nContent-Transfer-Encoding: base64"), "plain text"},
		{"two dispositions", contentType, edit(`name="model"`, "name=\"model\"\r\nContent-Disposition: form-data; name=\"x\""), "Content-Disposition"},
		{"escaped name", contentType, edit(`name="model"`, `name="mode\\l"`), "Content-Disposition"},
		{"encoded name", contentType, edit(`name="model"`, `name*=UTF-8''model`), "Content-Disposition"},
		{"nameless", contentType, edit(`name="model"`, ""), "Content-Disposition"},
		{"no colon", contentType, edit(`Content-Disposition:`, "Content-Disposition"), "malformed header"},
		{"long header", contentType, edit(`name="model"`, `name="`+strings.Repeat("x", 9<<10)+`"`), "no header"},
		{"parts", typeMany, many, "more than 128 parts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := openai.Peek(test.contentType, test.body)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want something with %q", err, test.says)
			}
		})
	}
}

func TestConversation(t *testing.T) {
	key := func(body string) string {
		t.Helper()
		r, err := openai.Peek("application/json", []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return r.Conversation()
	}
	const system = `{"role":"system","content":"Be brief."},`
	first := key(`{"model":"a","messages":[` + system + `{"role":"user","content":"hello"}]}`)
	if len(first) != 32 {
		t.Fatalf("got %q", first)
	}
	same := []string{
		`{"messages":[` + system + `{"role":"user","content":"hello"},{"role":"assistant","content":"hi"},{"role":"user","content":"more"}],"model":"a"}`,
		`{"stream":true,"messages":[` + system + ` {"content" : "hello", "role":"user", "name":"x"}]}`,
		`{"messages":[` + system + `{"role":"user","content":[{"type":"text","text":"hello","cache_control":{"type":"ephemeral"}}]}]}`,
		`{"system":"Be brief.","messages":[{"role":"user","content":"hello"}]}`,
		`{"instructions":"Be brief.","input":"hello"}`,
		`{"instructions":"Be brief.","input":[{"role":"user","content":[{"type":"input_text","text":"hello"}]}]}`,
	}
	for _, body := range same {
		if key(body) != first {
			t.Errorf("another key for %s", body)
		}
	}
	different := map[string]string{first: "the first"}
	for _, body := range []string{
		`{"messages":[` + system + `{"role":"user","content":"hullo"}]}`,
		`{"messages":[{"role":"user","content":"hello"}]}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,x"}},{"type":"text","text":"hello"}]}]}`,
		`{"prompt":"Once"}`,
		`{"prompt":[1,2,3]}`,
		`{"prompt":[1,2,4]}`,
		`{"input":["a","b"]}`,
	} {
		k := key(body)
		if k == "" || different[k] != "" {
			t.Errorf("key %q of %s is that of %s", k, body, different[k])
		}
		different[k] = body
	}
	for _, body := range []string{
		`{}`, `{"messages":null}`, `{"messages":[]}`, `{"messages":[` + strings.TrimSuffix(system, ",") + `]}`, `{"messages":[7]}`,
		`{"messages":[{"role":"user"}]}`, `{"messages":[{"role":"user","content":null}]}`, `{"messages":[{"role":"user","content":[]}]}`,
	} {
		if k := key(body); k != "" {
			t.Errorf("key %q of %s", k, body)
		}
	}
}

// FuzzPeek checks that the standard library's parsers find the same.
func FuzzPeek(f *testing.F) {
	for _, body := range []string{
		`{"model":"pocket","stream":true,"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}`,
		`{"\u006dodel":"m\\\"","x":{"model":[1.0,1e-7,"\\"]},"input":[{"role":"user","content":[{"text":"t"}]}]}`,
		` { "prompt" : [ 1 , 2 ] , "stream" : null } `, `{"model":"a","Model":"b"}`, `[]`, `{`, "{\"model\":\"\xff\"}",
	} {
		f.Add("application/json", []byte(body))
	}
	contentType, body := form(f, "model", "whisper-1", "stream", "true")
	f.Add(contentType, body)
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n\r\n--b--"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		r, err := openai.Peek(contentType, body)
		if err != nil || len(body) == 0 {
			return
		}
		if got := stdModel(t, contentType, body); got != r.Model {
			t.Fatalf("Peek found %q, the standard library %q", r.Model, got)
		}
		other := r.WithModel(body, "other")
		again, err := openai.Peek(contentType, other)
		if err != nil {
			t.Fatalf("after WithModel: %v", err)
		}
		if r.Model != "" && again.Model != "other" || again.Stream != r.Stream || again.Conversation() != r.Conversation() {
			t.Fatalf("after WithModel: %+v, before %+v", again, r)
		}
	})
}

func stdModel(t *testing.T, contentType string, body []byte) string {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "multipart/form-data" {
		var v struct {
			Model string `json:"model"`
		}
		if err := json.Unmarshal(body, &v); err != nil {
			t.Fatalf("Peek took what is not JSON: %v", err)
		}
		return v.Model
	}
	model := ""
	for r := multipart.NewReader(bytes.NewReader(body), params["boundary"]); ; {
		p, err := r.NextPart()
		if err == io.EOF {
			return model
		}
		if err != nil {
			t.Fatalf("Peek took what is no form: %v", err)
		}
		if p.FormName() == "model" {
			b, err := io.ReadAll(p)
			if err != nil {
				t.Fatal(err)
			}
			model = string(b)
		}
	}
}

func BenchmarkPeek(b *testing.B) {
	body := []byte(`{"model":"pocket","stream":true,"temperature":0.7,"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"` +
		strings.Repeat("What is a river? ", 240) + `"}]}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if r, err := openai.Peek("application/json", body); err != nil || r.Model != "pocket" {
			b.Fatal(err)
		}
	}
}
