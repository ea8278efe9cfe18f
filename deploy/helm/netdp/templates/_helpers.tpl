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
{{- /* Programs that are still attached are needed until netfilter has taken over everything. */ -}}
{{- if and (eq .Values.mode "iptables") (not (include "netdp.takeover" .)) -}}
[NET_ADMIN, NET_RAW]
{{- else if .Values.sysAdmin -}}
[SYS_ADMIN, NET_ADMIN, NET_RAW]
{{- else -}}
[BPF, NET_ADMIN, NET_RAW, PERFMON]
{{- end }}
{{- end }}

{{- /* Fails if a ConfigMap exists that does not belong to the release. */ -}}
{{- define "netdp.owns" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $value := index . 2 }}
{{- $namespace := $root.Release.Namespace }}
{{- with lookup "v1" "ConfigMap" $namespace $name }}
{{- $annotations := .metadata.annotations | default dict }}
{{- if ne (get $annotations "meta.helm.sh/release-name") $root.Release.Name }}
{{- fail (printf "the ConfigMap %s/%s already exists and does not belong to this release. Omit the value `%s`: netdp reads the existing ConfigMap. Or hand it over to the release, which replaces its content: kubectl -n %s label configmap %s app.kubernetes.io/managed-by=Helm; kubectl -n %s annotate configmap %s meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s" $namespace $name $value $namespace $name $namespace $name $root.Release.Name $namespace) }}
{{- end }}
{{- end }}
{{- end }}
