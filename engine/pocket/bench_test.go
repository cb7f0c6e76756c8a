package pocket_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// Decode is what an answer costs: the context goes from empty to 256 tokens.
func BenchmarkDecode(b *testing.B) {
	s := load(b).Session()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n++; n%256 == 0 {
			s.Reset()
		}
		s.Step(300)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}

// Prefill is what a prompt costs.
func BenchmarkPrefill(b *testing.B) {
	for _, n := range []int{32, 256, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := load(b).Session()
			b.ReportAllocs()
			for b.Loop() {
				for range n {
					s.Feed(300)
				}
				s.Reset()
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		load(b)
	}
}

// Stream is a whole exchange of 9 + 11 tokens.
func BenchmarkStream(b *testing.B) {
	p := open(b)
	body := chatBody(user("What is a river?"), `"stream":true`)
	b.ReportAllocs()
	for b.Loop() {
		p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(body)))
	}
}

func TestStepAllocatesNothing(t *testing.T) {
	s := load(t).Session()
	if n := testing.AllocsPerRun(100, func() { s.Step(300); s.Feed(301) }); n != 0 {
		t.Errorf("a step allocates %v times", n)
	}
}
