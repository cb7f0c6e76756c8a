package pocket_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var recall = flag.Bool("recall", false, "ask everything the model was taught and print how much it knows, rather than ask a sample")

// The questions are of the trained kinds: this measures recall, not
// generalisation, except for the cities that were kept out of the training.
func TestRecall(t *testing.T) {
	p := open(t)
	var taught struct {
		Definitions    map[string]string
		Cities, Unseen []string
		Untaught       []string // words whose meaning was never asked for
	}
	b, err := os.ReadFile("testdata/recall.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &taught); err != nil {
		t.Fatal(err)
	}
	n := 0
	sampled := func() bool { n++; return *recall || n%23 == 0 }
	// Short of everything in each, by as much as was measured when the weights were made.
	score := func(what string, least float64, each func(count func(ok bool))) {
		asked, right := 0, 0
		each(func(ok bool) {
			if asked++; ok {
				right++
			}
		})
		t.Logf("%s: %d / %d", what, right, asked)
		if float64(right) < least*float64(asked) {
			t.Errorf("%s: %d / %d right, want %.2f", what, right, asked, least)
		}
	}

	article := func(word string) string {
		if strings.ContainsAny(word[:1], "aeiou") {
			return "an " + word
		}
		return "a " + word
	}
	for _, q := range []string{"What is %s?", "Define %s.", "%s?"} {
		score("definitions, "+q, .9, func(count func(bool)) {
			for _, word := range slices.Sorted(maps.Keys(taught.Definitions)) {
				if !sampled() {
					continue
				}
				w, gloss := word, taught.Definitions[word]
				if strings.HasPrefix(q, "What") {
					w = article(word)
				}
				want := strings.ToUpper(word[:1]) + word[1:] + ": " + gloss + "."
				got := ask(t, p, user(fmt.Sprintf(q, w)))
				count(got.content() == want)
			}
		})
	}
	score("words it does not know and says so", .8, func(count func(bool)) {
		for _, word := range taught.Untaught {
			if sampled() {
				got := ask(t, p, user("What is "+article(word)+"?"))
				count(got.content() == "I do not know that. I am only a small demonstration model.")
			}
		}
	})
	score("sums", .8, func(count func(bool)) {
		for a := range 13 {
			for b := range 13 {
				if sampled() {
					got := ask(t, p, user(fmt.Sprintf("What is %d + %d?", a, b)))
					count(got.content() == fmt.Sprintf("%d + %d = %d.", a, b, a+b))
				}
			}
		}
	})
	for _, kind := range []struct {
		name   string
		cities []string
	}{{"trained cities", taught.Cities}, {"unseen cities", taught.Unseen}} {
		tools, args, answers := [2]int{}, [2]int{}, [2]int{}
		add := func(c *[2]int, ok bool) {
			if c[1]++; ok {
				c[0]++
			}
		}
		for _, city := range kind.cities {
			for _, q := range [][2]string{{"What is the weather in %s?", "get_weather"}, {"What time is it in %s?", "get_time"}} {
				if !sampled() {
					continue
				}
				got := ask(t, p, user(fmt.Sprintf(q[0], city)), `"tools":`+cityTools)
				ok := len(got.calls()) == 1 && got.calls()[0].Function.Name == q[1]
				add(&tools, ok)
				add(&args, ok && got.calls()[0].Function.Arguments == fmt.Sprintf(`{"city": %q}`, city))
			}
			if sampled() {
				got := ask(t, p, user("What is the weather in "+city+"?")+`,{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"get_weather","arguments":"{\"city\": \"`+city+`\"}"}}]},{"role":"tool","tool_call_id":"c1","content":"12 C, sunny"}`, `"tools":`+cityTools)
				add(&answers, got.content() == "In "+city+" it is 12 C and sunny.")
			}
		}
		t.Logf("%s: right tool %d / %d, right arguments %d / %d, right answer from the result %d / %d", kind.name, tools[0], tools[1], args[0], args[1], answers[0], answers[1])
		if tools[0] != tools[1] {
			t.Errorf("%s: wrong tool", kind.name)
		}
	}
}
