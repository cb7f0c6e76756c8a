package openai_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"token.place/openai"
)

func TestReadModels(t *testing.T) {
	for _, test := range []struct {
		name, body string
		want       openai.ModelList
	}{
		{"OpenAI", `{"object":"list","data":[{"id":"gpt-5","object":"model","created":1,"owned_by":"openai"}]}`,
			openai.ModelList{{ID: "gpt-5", Created: 1, OwnedBy: "openai"}}},
		{"Ollama without models", `{"object":"list","data":null}`, nil},
		{"empty", `{"object":"list","data":[]}`, nil},
		{"Ollama", `{"object":"list","data":[{"id":"llama3.2:1b","object":"model","created":1731000000,"owned_by":"library"}]}`,
			openai.ModelList{{ID: "llama3.2:1b", Created: 1731000000, OwnedBy: "library"}}},
		{"llama-server", `{"models":[{"name":"pocket"}],"object":"list","data":[{"id":"pocket","meta":{"vocab_type":1,"n_ctx_train":512,"size":1}}]}`,
			openai.ModelList{{ID: "pocket", ContextLength: 512}}},
		{"llama-server, running", `{"data":[{"id":"pocket","meta":{"n_ctx":256,"n_ctx_train":512}}]}`,
			openai.ModelList{{ID: "pocket", ContextLength: 256}}},
		{"vLLM", `{"object":"list","data":[{"id":"Qwen/Qwen3-8B","root":"x","parent":null,"max_model_len":32768,"permission":[{}]}]}`,
			openai.ModelList{{ID: "Qwen/Qwen3-8B", ContextLength: 32768}}},
		{"LM Studio", `{"data":[{"id":"a","max_context_length":131072,"loaded_context_length":4096},{"id":"b","max_context_length":8192}]}`,
			openai.ModelList{{ID: "a", ContextLength: 4096}, {ID: "b", ContextLength: 8192}}},
		{"others", `{"data":[{"id":"a","context_window":8192.0,"created":1.5e9},{"id":"b","context_length":1e3}]}`,
			openai.ModelList{{ID: "a", ContextLength: 8192, Created: 1500000000}, {ID: "b", ContextLength: 1000}}},
		{"odd entries", `{"data":[7,null,{"id":""},{"id":"a\u0000"},{"id":7},{"id":"a","created":"x","owned_by":{},"meta":[],"max_model_len":"long","context_length":-1},{"id":"a"},{"id":"b","meta":null,"max_model_len":1e300}]}`,
			openai.ModelList{{ID: "a"}, {ID: "b"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := openai.ReadModels(strings.NewReader(test.body))
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestReadModelsRefuses(t *testing.T) {
	var many []string
	for i := range 1001 {
		many = append(many, fmt.Sprintf(`{"id":"m%d"}`, i))
	}
	for name, body := range map[string]string{
		"HTML": "<html>", "other JSON": `{"status":"ok"}`, "array": `[]`, "nothing": "", "data is an object": `{"data":{}}`,
		"too many": `{"data":[` + strings.Join(many, ",") + `]}`, "trailing": `{"data":[]}x`,
	} {
		if got, err := openai.ReadModels(strings.NewReader(body)); !errors.Is(err, openai.ErrModels) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if _, err := openai.ReadModels(&repeat{s: " "}); err == nil {
		t.Error("an endless list was read")
	}
}

func TestWriteModels(t *testing.T) {
	for _, test := range []struct {
		list openai.ModelList
		want string
	}{
		{nil, `{"object":"list","data":[]}`},
		{openai.ModelList{{ID: "pocket", Created: 5, OwnedBy: "token.place", ContextLength: 512}, {ID: "b"}},
			`{"object":"list","data":[{"id":"pocket","object":"model","created":5,"owned_by":"token.place","context_length":512},{"id":"b","object":"model","created":0,"owned_by":""}]}`},
	} {
		got, err := json.Marshal(test.list)
		if err != nil || string(got) != test.want {
			t.Errorf("got %s, %v", got, err)
		}
		again, err := openai.ReadModels(strings.NewReader(string(got)))
		if err != nil || !reflect.DeepEqual(again, test.list) {
			t.Errorf("read again: %+v, %v", again, err)
		}
	}
	for _, id := range []string{"", "a\n", "\xff", strings.Repeat("x", 257), "a\u0085", "a\u200b", "\u202ea"} {
		if got, err := json.Marshal(openai.ModelList{{ID: id}}); err == nil {
			t.Errorf("wrote %s", got)
		}
	}
}

func FuzzReadModels(f *testing.F) {
	f.Add(`{"object":"list","data":[{"id":"a","max_model_len":1,"meta":{"n_ctx_train":5}}]}`)
	f.Add(`{"object":"list","data":null}`)
	f.Fuzz(func(t *testing.T, body string) {
		list, err := openai.ReadModels(strings.NewReader(body))
		if err != nil {
			return
		}
		written, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		again, err := openai.ReadModels(strings.NewReader(string(written)))
		if err != nil || !reflect.DeepEqual(again, list) {
			t.Fatalf("wrote %s, read %+v, %v", written, again, err)
		}
	})
}
