{{- define "netdp.labels" -}}
app.kubernetes.io/name: netdp
{{- end }}

{{- define "netdp.selector" -}}
{{- if .Values.replaceIpMasqAgent -}}
k8s-app: ip-masq-agent
{{- else -}}
app.kubernetes.io/name: netdp
{{- end }}
{{- end }}

{{- define "netdp.daemonset" -}}
{{ if .Values.replaceIpMasqAgent }}ip-masq-agent{{ else }}netdp{{ end }}
{{- end }}

{{- /* Not empty where rules on the nodes are taken over. */ -}}
{{- define "netdp.takeover" -}}
{{- if or .Values.takeover .Values.replaceIpMasqAgent .Values.targets }}true{{ end }}
{{- end }}

{{- define "netdp.image" -}}
{{- $version := .Chart.AppVersion }}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $version }}{{ end }}
{{- end }}
{{- end }}

{{- define "netdp.capabilities" -}}
{{- if include "netdp.takeover" . -}}
[BPF, NET_ADMIN, NET_RAW, PERFMON]
{{- else if eq .Values.mode "iptables" -}}
[NET_ADMIN, NET_RAW]
{{- else if .Values.sysAdmin -}}
[SYS_ADMIN, NET_ADMIN]
{{- else -}}
[BPF, NET_ADMIN, PERFMON]
{{- end }}
{{- end }}
