package check

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// relation is why one transaction comes before another.
type relation uint8

const (
	ww relation = iota // the other wrote the next version
	wr                 // the other read its version
	rw                 // the other wrote the next version after the one it read: an anti-dependency
	so                 // the other came later in the same session
	rt                 // the other began after it had ended, and both wrote
)

type edge struct {
	to  int
	why relation
	key string
}

func (c *txnCheck) judgeCycles() {
	graph := c.dependencies()
	// The narrowest kinds first: a cycle that needs fewer kinds of edges is the worse anomaly.
	for _, kind := range []struct {
		name string
		of   []relation
	}{
		{"G0, dirty write", []relation{ww}},
		{"G0, dirty write against the order of sessions or of time", []relation{ww, so, rt}},
		{"G1c, circular information flow", []relation{ww, wr}},
		{"G1c, circular information flow against the order of sessions or of time", []relation{ww, wr, so, rt}},
		{"G-single, read skew", []relation{ww, wr, rw}},
		{"G-single, read skew against the order of sessions or of time", []relation{ww, wr, rw, so, rt}},
	} {
		cycle := shortestCycle(graph, kind.of)
		if cycle == nil {
			continue
		}
		anti := 0
		for _, step := range cycle {
			if step.why == rw {
				anti++
			}
		}
		name := kind.name
		if anti > 1 {
			name = strings.Replace(name, "G-single, read skew", "G-nonadjacent", 1)
		}
		c.report(name, "of several", "%s", c.tell(cycle))
		return
	}
}

func (c *txnCheck) tell(cycle []edge) string {
	names := [...]string{
		ww: "and of key %s the next version is of", wr: "and its version of key %s is read by",
		rw: "and the version of key %s after the one it read is of", so: "and later in the same session comes%s",
		rt: "and after its end begins%s",
	}
	var text strings.Builder
	from := cycle[len(cycle)-1].to
	text.WriteString(c.txns[from].String())
	for _, step := range cycle {
		key := step.key
		fmt.Fprintf(&text, " "+names[step.why]+" %s", key, c.txns[step.to])
	}
	return text.String()
}

// dependencies of all transactions that happened.
func (c *txnCheck) dependencies() [][]edge {
	graph := make([][]edge, len(c.txns))
	add := func(from, to int, why relation, key string) {
		if from != to {
			graph[from] = append(graph[from], edge{to, why, key})
		}
	}
	for key, list := range c.finals {
		for i := 1; i < len(list); i++ {
			add(c.writer[version{key, list[i-1]}], c.writer[version{key, list[i]}], ww, key)
		}
	}
	for i, t := range c.txns {
		if !c.happened(i) {
			continue
		}
		for _, key := range t.keys() {
			base, read := t.base(key)
			if !read {
				continue
			}
			final := c.finals[key]
			if len(base) > 0 {
				add(c.writer[version{key, base[len(base)-1]}], i, wr, key)
			}
			// Its own version, where it wrote the next one, is no reason.
			if len(base) < len(final) {
				add(i, c.writer[version{key, final[len(base)]}], rw, key)
			}
		}
	}
	c.addSessions(add)
	c.addTime(add)
	return graph
}

func (t Txn) keys() []string {
	var keys []string
	for _, step := range t.Steps {
		if !slices.Contains(keys, step.Key) {
			keys = append(keys, step.Key)
		}
	}
	return keys
}

func (c *txnCheck) addSessions(add func(from, to int, why relation, key string)) {
	last := map[string]int{}
	for i, t := range c.txns {
		// What ended in doubt has told its session no time to read at.
		if t.Outcome != Done {
			continue
		}
		if before, any := last[t.Client]; any {
			add(before, i, so, "")
		}
		last[t.Client] = i
	}
}

// addTime leads only from those that ended last: the others follow through them.
func (c *txnCheck) addTime(add func(from, to int, why relation, key string)) {
	type moment struct {
		ends bool
		txn  int
	}
	var moments []moment
	for i, t := range c.txns {
		if !c.happened(i) || !t.writes() {
			continue
		}
		moments = append(moments, moment{false, i})
		if t.Outcome == Done {
			moments = append(moments, moment{true, i})
		}
	}
	time := func(m moment) int64 {
		if m.ends {
			return int64(c.txns[m.txn].Return)
		}
		return int64(c.txns[m.txn].Call)
	}
	// What begins at the moment at which another ends does not come after it.
	sort.SliceStable(moments, func(i, j int) bool {
		a, b := time(moments[i]), time(moments[j])
		return a < b || a == b && !moments[i].ends && moments[j].ends
	})
	var ended []int
	before := map[int][]int{}
	for _, m := range moments {
		if m.ends {
			ended = slices.DeleteFunc(ended, func(i int) bool { return slices.Contains(before[m.txn], i) })
			ended = append(ended, m.txn)
			continue
		}
		before[m.txn] = slices.Clone(ended)
		for _, from := range ended {
			add(from, m.txn, rt, "")
		}
	}
}

func (t Txn) writes() bool {
	return slices.ContainsFunc(t.Steps, func(step Step) bool { return step.Append != 0 })
}

// shortestCycle finds one of these kinds of edges without two anti-dependencies in a row, nil if there is none. Each
// transaction stands twice: as it is, and as it is right after an anti-dependency, where none may follow.
func shortestCycle(graph [][]edge, kinds []relation) []edge {
	next := func(node int) []edge {
		var out []edge
		for _, e := range graph[node/2] {
			if !slices.Contains(kinds, e.why) || e.why == rw && node%2 == 1 {
				continue
			}
			state := 0
			if e.why == rw {
				state = 1
			}
			out = append(out, edge{e.to*2 + state, e.why, e.key})
		}
		return out
	}
	var best []edge
	for _, component := range components(2*len(graph), next) {
		for _, start := range component[:min(len(component), 100)] {
			if cycle := shortestFrom(start, next); cycle != nil && (best == nil || len(cycle) < len(best)) {
				best = cycle
			}
		}
	}
	for i := range best {
		best[i].to /= 2
	}
	return best
}

func shortestFrom(start int, next func(int) []edge) []edge {
	type arrival struct {
		from int
		by   edge
	}
	came := map[int]arrival{}
	for queue := []int{start}; len(queue) > 0; queue = queue[1:] {
		for _, e := range next(queue[0]) {
			if _, known := came[e.to]; known {
				continue
			}
			came[e.to] = arrival{queue[0], e}
			if e.to == start {
				var cycle []edge
				for node := start; len(cycle) == 0 || node != start; node = came[node].from {
					cycle = append(cycle, came[node].by)
				}
				slices.Reverse(cycle)
				return cycle
			}
			queue = append(queue, e.to)
		}
	}
	return nil
}

// components are the strongly connected ones of more than one node (Tarjan): every cycle is inside one.
func components(nodes int, next func(int) []edge) [][]int {
	var found [][]int
	index, low := make([]int, nodes), make([]int, nodes)
	onStack := make([]bool, nodes)
	var stack []int
	count := 0
	var visit func(int)
	visit = func(node int) {
		count++
		index[node], low[node] = count, count
		stack = append(stack, node)
		onStack[node] = true
		for _, e := range next(node) {
			if index[e.to] == 0 {
				visit(e.to)
				low[node] = min(low[node], low[e.to])
			} else if onStack[e.to] {
				low[node] = min(low[node], index[e.to])
			}
		}
		if low[node] != index[node] {
			return
		}
		for i := len(stack) - 1; ; i-- {
			onStack[stack[i]] = false
			if stack[i] == node {
				if component := slices.Clone(stack[i:]); len(component) > 1 {
					found = append(found, component)
				}
				stack = stack[:i]
				return
			}
		}
	}
	for node := range nodes {
		if index[node] == 0 {
			visit(node)
		}
	}
	return found
}
